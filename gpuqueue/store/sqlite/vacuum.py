"""Owns giving the disk back what a database file no longer needs; deletes no row."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gpuqueue.domain.errors import StoreBusy
from gpuqueue.store.sqlite.connections import explained

PATIENCE_S = 2.0


class Vacuumed(NamedTuple):
    """How large the file and its write-ahead log were and are; not `finished` while a reader keeps the old content."""

    before_bytes: int
    after_bytes: int
    finished: bool


def vacuum(path: Path, *, patience_s: float = PATIENCE_S) -> Vacuumed:
    """Write the file anew without its unused pages. It holds the write lock meanwhile: for when no worker lives.

    Raises: StoreBusy when another connection reads or writes, and nothing was changed; another StoreError.
    """
    before_bytes = _size(path)
    # A connection of its own: those of the store keep what is temporary in memory, which here is the whole file.
    with explained(path), closing(sqlite3.connect(path, isolation_level=None, timeout=patience_s)) as connection:
        if not _truncate_log(connection):
            raise StoreBusy(
                f"another connection reads or writes {path}; nothing was changed. End it, or try again (to find it: fuser {path})"
            )
        connection.execute("VACUUM")
        finished = _truncate_log(connection)
    return Vacuumed(before_bytes, _size(path), finished)


def _truncate_log(connection: sqlite3.Connection) -> bool:
    """Copy the write-ahead log into the file and empty it; returns False when somebody needs it still."""
    busy: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return not busy


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())
