"""Owns the command line's entry point; the commands are in this package's other files, and the queue is not here."""

from __future__ import annotations

from gpuqueue.cli.app import main

__all__ = ["main"]
