"""Holds the command line: its entry point here, each command or shared concern in its own file."""

from __future__ import annotations

from gpuqueue.cli.app import main

__all__ = ["main"]
