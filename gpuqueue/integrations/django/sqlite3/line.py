"""Lines up the threads of one process for a file's write lock: the first one tries, the others sleep.

It knows neither cursors nor transactions: a thread that has the lock has left the line.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from gpuqueue.store.sqlite.connections import is_busy
from gpuqueue.store.sqlite.write_lock import EAGER_WAIT_S, holders, when_free

Result = TypeVar("Result")


class Line:
    """First come, first served, within a process; between processes, the first thread of each line waits with jitter."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False

    def wait(self, work: Callable[[], Result], timeout_s: float) -> Result:
        """Do `work`, which needs the write lock, once it is this thread's turn and the lock is free.

        Raises: sqlite3.OperationalError after `timeout_s`, or at once if another connection of this thread holds the lock.
        """
        give_up_s = time.monotonic() + timeout_s
        if not self._enter(timeout_s):
            raise sqlite3.OperationalError(f"database is locked: {self._path} stayed locked for {timeout_s:g} s")
        try:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
            self._refuse_to_wait_for_itself()
            return when_free(work, wait_s=EAGER_WAIT_S, timeout_s=max(0.0, give_up_s - time.monotonic()))
        finally:
            self._leave()

    def _refuse_to_wait_for_itself(self) -> None:
        for holder in holders:
            who = holder(self._path)
            if who is not None:
                raise sqlite3.OperationalError(
                    f"database is locked: {who} is in a transaction on {self._path} in this thread, and a second connection "
                    "would wait for it forever"
                )

    def _enter(self, timeout_s: float) -> bool:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return True
        # Before it lines up behind a thread that waits for this one.
        self._refuse_to_wait_for_itself()
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return True
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=timeout_s):
            return True
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return False
        return True  # its turn came just now

    def _leave(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


_lines: dict[str, Line] = {}
_making = threading.Lock()


def line_for(path: str) -> Line:
    """Return the line of this process for a file."""
    with _making:
        return _lines.setdefault(path, Line(path))


def _after_fork_in_child() -> None:
    global _making
    # The threads that stood in line do not exist in the child.
    _making = threading.Lock()
    for line in _lines.values():
        line.__init__(line._path)  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
