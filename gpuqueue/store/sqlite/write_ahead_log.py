"""Keeps the write-ahead log small, and finds who keeps it from being so; writes no row."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from pathlib import Path

from gpuqueue.store.sqlite.connections import LOG_BYTES, READ_TIMEOUT_MS
from gpuqueue.store.sqlite.write_lock import PATIENT_WAIT_S

EMPTYING_TRIES = 50
LOOKS = 5
BETWEEN_LOOKS_S = 0.05
LOCKS = Path("/proc/locks")  # on Linux: every file lock, with its process
READ_MARKS = range(124, 128)  # SQLite's read marks in the -shm file that keep a checkpoint from going further


def size(path: Path) -> int:
    """Return the size of a database's log file."""
    try:
        return os.stat(f"{path}-wal").st_size
    except OSError:
        return 0


def checkpoint(connection: sqlite3.Connection, path: Path) -> None:
    """Copy the log into the database without blocking anyone; a large log that is written without a pause is also emptied."""
    if _is_held(connection) or size(path) <= LOG_BYTES:
        return
    # The log starts again from its beginning only when all of it is copied, which never happens between writes that follow each
    # other at once. This takes the write lock for what was written since.
    connection.execute("PRAGMA busy_timeout = 0")  # or it would hold the write lock while it waits for readers
    try:
        for _ in range(EMPTYING_TRIES):
            if not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                break
            time.sleep(random.uniform(*PATIENT_WAIT_S))
    finally:
        connection.execute(f"PRAGMA busy_timeout = {READ_TIMEOUT_MS}")


def holders(connection: sqlite3.Connection, path: Path) -> list[int] | None:
    """Return the ids of the processes whose reads keep the log from being copied, empty if none does, None if not known.

    Not known: the system is not Linux, or the process is in another container or on another host.
    """
    if not _is_held(connection):
        return []
    try:
        shared = f":{os.stat(f'{path}-shm').st_ino}"
        found = _reading(shared)
        for _ in range(LOOKS - 1):  # short reads come and go
            time.sleep(BETWEEN_LOOKS_S)
            found &= _reading(shared)
    except OSError:
        return None
    return sorted({pid for pid, _ in found}) or None


def _is_held(connection: sqlite3.Connection) -> bool:
    """Copy what no reader needs any more; returns whether one needs the rest."""
    _, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return int(copied) < int(pages)


def _reading(shared: str) -> set[tuple[int, int]]:
    """Return the processes that hold a read mark in the -shm file with this inode, as (process, mark)."""
    found = set()
    for line in LOCKS.read_text().splitlines():
        words = line.split()  # 8: POSIX  ADVISORY  READ 14362 fe:00:2236896 124 124
        if len(words) == 8 and words[5].endswith(shared) and words[6].isdigit() and int(words[6]) in READ_MARKS:
            found.add((int(words[4]), int(words[6])))
    return found
