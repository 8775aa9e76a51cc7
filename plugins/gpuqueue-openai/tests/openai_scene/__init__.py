"""Owns what this plugin's tests play with: a real llama.cpp with a model made here, and a server that fails as it is told."""
