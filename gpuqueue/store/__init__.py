"""Owns the queue's rows: the store, and the engines that keep them; never imports a device or an executor."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Open a queue, which is created or upgraded when needed; `patient` is for workers, who leave the lock to producers.

    Raises: NotADatabase, NewerSchema, StoreUnwritable, StoreBusy.
    """
    # The engine is loaded here: a process that has not used its queue yet has no use for it.
    from gpuqueue.store.sqlite.engine import SQLite
    from gpuqueue.store.store import Store

    def engine() -> SQLite:
        return SQLite(database, synchronous=synchronous, patient=patient, write_timeout_s=write_timeout_s, now_us=now_us)

    return Store(engine)
