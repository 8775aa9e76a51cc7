"""Waits fairly for SQLite's write lock, and detects a thread that would wait for itself; runs no transaction."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpuqueue.domain.errors import UsageError
from gpuqueue.store import forks
from gpuqueue.store.sqlite.connections import is_busy

Result = TypeVar("Result")

# SQLite's own busy handler starves writers. A jittered wait is fair, and puts producers ahead of workers.
EAGER_WAIT_S = (0.000_02, 0.000_2)
PATIENT_WAIT_S = (0.000_1, 0.005)


def when_free(work: Callable[[], Result], *, wait_s: tuple[float, float], timeout_s: float) -> Result:
    """Call `work`, which takes the write lock before anything else, repeatedly until the lock is free.

    The connection's own busy timeout must be 0. Raises: SQLite's last busy error after `timeout_s`; any other error immediately.
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


# Takes a file's real path; returns a description of the calling thread's other connection that holds the file's write lock, or
# None. An integration adds one for the connections that its framework gives each thread.
Holder = Callable[[str], str | None]
holders: list[Holder] = []


class HeldHere:
    """Refuses to wait for a lock that the calling thread holds itself: it would wait forever."""

    def __init__(self, path: Path) -> None:
        self._path = os.path.realpath(path)

    def refuse(self) -> None:
        """Raises: UsageError if another connection of this thread holds the lock; ForkedWithOpenFile if that is its parent's."""
        for holder in holders:
            who = holder(self._path)
            if who is not None:
                forks.refuse_inherited(self._path)
                raise UsageError(
                    f"{who} has an open transaction on {self._path} in this thread, and a second connection would wait for it "
                    "forever. Enqueue the job in that transaction (connection=) or after the commit"
                )
