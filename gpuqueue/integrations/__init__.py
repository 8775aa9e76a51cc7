"""Owns gpuqueue's places inside web frameworks, a module for each; the queue knows none of them.

A framework is loaded by nobody but who imports the module of its name.
"""
