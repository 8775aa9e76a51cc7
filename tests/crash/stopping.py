"""Owns stopping a worker process as a laptop that sleeps does, where others can go on without it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from contextlib import closing

from gpuqueue import GPUQueue


def stop_outside_a_write(process: subprocess.Popen[str], gq: GPUQueue) -> None:
    """Stop a worker, but not within a write: SQLite's lock is then its own until it goes on, and nobody could rescue."""
    stop(process)
    while not can_write(gq):
        go_on(process)
        stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def go_on(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)


def can_write(gq: GPUQueue) -> bool:
    """Whether the file's write lock is free, or becomes so within a second."""
    with closing(sqlite3.connect(gq.store.engine.path, timeout=1, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True
