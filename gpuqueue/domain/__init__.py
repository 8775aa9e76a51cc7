"""Owns the nouns and the pure rules; imports nothing of gpuqueue from outside this folder."""
