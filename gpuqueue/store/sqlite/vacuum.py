"""Shrinks a database file by its unused pages; deletes no row."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from gpuqueue.domain.errors import StoreBusy
from gpuqueue.store.sqlite.connections import explained

PATIENCE_S = 2.0


class Vacuumed(NamedTuple):
    """The size of the file and its write-ahead log, before and after; not `finished` while a reader keeps the old content."""

    before_bytes: int
    after_bytes: int
    finished: bool


def vacuum(path: Path, *, patience_s: float = PATIENCE_S) -> Vacuumed:
    """Rewrite the file without its unused pages. This holds the write lock, so run it while no worker is running.

    Raises: StoreBusy if another connection is reading or writing (nothing was changed); another StoreError.
    """
    before_bytes = _size(path)
    # A separate connection: the store's connections keep temporary data in memory, which here is the whole file.
    with explained(path), closing(sqlite3.connect(path, isolation_level=None, timeout=patience_s)) as connection:
        if not _truncate_log(connection):
            raise StoreBusy(
                f"another connection is using {path}; nothing was changed. Stop it or try again (to find it: fuser {path})"
            )
        connection.execute("VACUUM")
        finished = _truncate_log(connection)
    return Vacuumed(before_bytes, _size(path), finished)


def _truncate_log(connection: sqlite3.Connection) -> bool:
    """Copy the write-ahead log into the file and empty it; returns False if another connection still needs it."""
    busy: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return not busy


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, Path(f"{path}-wal")) if file.exists())
