"""Stores the queue's rows: the store, and the engines behind it; never imports a device or an executor."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpuqueue.store import forks

if TYPE_CHECKING:
    from gpuqueue.store.store import Store

__all__ = ["open_store"]
WRITE_TIMEOUT_S = 10.0


def _now_us() -> int:
    return time.time_ns() // 1000


def open_store(
    database: Path,
    *,
    synchronous: str = "normal",
    patient: bool = False,
    write_timeout_s: float = WRITE_TIMEOUT_S,
    now_us: Callable[[], int] = _now_us,
) -> Store:
    """Open a queue, creating or upgrading it if needed; `patient` is for workers, which leave the write lock to producers.

    Raises: NotADatabase, NewerSchema, StoreUnwritable, StoreBusy, ForkedWithOpenFile.
    """
    forks.refuse_inherited(database)

    def opened() -> Store:
        # Imported here: a process that has not used its queue yet does not need the engine. A child whose parent forked during
        # these imports would wait for them forever.
        from gpuqueue.store.sqlite.engine import SQLite
        from gpuqueue.store.store import Store

        def engine() -> SQLite:
            return SQLite(database, synchronous=synchronous, patient=patient, write_timeout_s=write_timeout_s, now_us=now_us)

        return Store(engine)

    return forks.at_work(opened)
