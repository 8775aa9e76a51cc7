"""Loads the plugins of pytest that the plugins' tests share with those in tests/."""

pytest_plugins = ["tests.harness", "tests.sampling"]
