"""Owns the samples that `tests.benchmarks.against` takes: each module measures once, in a process of its own, and prints it.

They run on the package of any commit, so they use its public names alone. More is slower in all of them.
"""
