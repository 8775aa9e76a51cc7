"""Defines the nouns and the pure rules; imports nothing from gpuqueue outside this folder."""
