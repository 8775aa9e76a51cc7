"""Plays hours of people and batch work on one card in virtual time, and says how long people waited and what the card was worth.

`python -m tests.benchmarks.scheduling` prints the tables. Its first scheme is gpuqueue as it ships: every setting that an
hour does not need has its default. The worker's own time is not in it: a decision takes none.
"""
