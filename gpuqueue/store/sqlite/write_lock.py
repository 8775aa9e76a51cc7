"""Owns the fair wait for SQLite's write lock, and whether the waiting thread holds it itself; runs no transaction."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpuqueue.domain.errors import UsageError
from gpuqueue.store.sqlite.connections import is_busy

Result = TypeVar("Result")

# SQLite's own busy handler starves writers. A jittered wait of our own is fair; producers come before workers.
EAGER_WAIT_S = (0.000_02, 0.000_2)
PATIENT_WAIT_S = (0.000_1, 0.005)


def when_free(work: Callable[[], Result], *, wait_s: tuple[float, float], timeout_s: float) -> Result:
    """Do what needs the write lock first thing, again and again until the lock is free.

    The connection's own busy timeout must be 0. Raises: the last error of SQLite's after `timeout_s`; any other at once.
    """
    give_up_s = 0.0
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            now_s = time.monotonic()
            give_up_s = give_up_s or now_s + timeout_s
            if now_s >= give_up_s:
                raise
        time.sleep(random.uniform(*wait_s))


# Say whether another connection of the calling thread holds a file's write lock: {its real path} → who, or None. An
# integration adds one for the connections that its framework gives each thread.
Holder = Callable[[str], str | None]
holders: list[Holder] = []


class HeldHere:
    """Refuses to wait for a lock that the calling thread holds itself: it would wait for ever."""

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)

    def refuse(self) -> None:
        """Raises: UsageError when another connection of this thread holds the lock."""
        for holder in holders:
            who = holder(self._path)
            if who is not None:
                raise UsageError(
                    f"{who} is in a transaction on {self._path} in this thread, and a second connection would wait for its end "
                    "for ever. Let the job belong to that transaction (connection=), or store it after the commit"
                )
