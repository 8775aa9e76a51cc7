"""Owns the command line: its entry point here, one command or one concern of all commands in a file."""

from __future__ import annotations

from gpuqueue.cli.app import main

__all__ = ["main"]
