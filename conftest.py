"""Loads what the tests of this repository, those of the plugins among them, run within."""

pytest_plugins = ["tests.harness", "tests.sampling"]
