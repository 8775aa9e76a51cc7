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
from contextlib import suppress
from typing import TypeVar

from gpuqueue.domain.errors import UsageError
from gpuqueue.store.sqlite.connections import is_busy
from gpuqueue.store.sqlite.write_lock import EAGER_WAIT_S, holders, when_free
from gpuqueue.store.turns import Turn, Turns, new_turn

Result = TypeVar("Result")


LOOK_AGAIN_S = 0.05  # after which a thread in the line looks for itself, because a thread that was interrupted calls nobody


class Line:
    """First come, first served, within a process; between processes, the first thread of each line waits with jitter."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._turns = Turns(
            f"database is locked: this thread is just writing to {path}, and a signal handler or a finalizer cannot do so in the "
            "middle of that"
        )
        self._waiting: deque[threading.Lock] = deque()

    def wait(self, work: Callable[[], Result], timeout_s: float) -> Result:
        """Do `work`, which needs the write lock, once it is this thread's turn and the lock is free.

        Raises: sqlite3.OperationalError after `timeout_s`, or at once if another connection of this thread holds the lock.
        """
        mine = new_turn()
        try:
            with mine[0], mine[1]:
                return self._in_turn(mine, work, timeout_s)
        except UsageError as refusal:
            raise sqlite3.OperationalError(str(refusal)) from None
        finally:
            if self._turns.last is mine:
                with suppress(IndexError):
                    self._waiting.popleft().release()

    def _in_turn(self, mine: Turn, work: Callable[[], Result], timeout_s: float) -> Result:
        give_up_s = time.monotonic() + timeout_s
        if not self._enter(mine, give_up_s):
            raise sqlite3.OperationalError(f"database is locked: {self._path} stayed locked for {timeout_s:g} s")
        try:
            return work()
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        self._refuse_to_wait_for_itself()
        return when_free(work, wait_s=EAGER_WAIT_S, timeout_s=max(0.0, give_up_s - time.monotonic()))

    def _refuse_to_wait_for_itself(self) -> None:
        for holder in holders:
            who = holder(self._path)
            if who is not None:
                raise sqlite3.OperationalError(
                    f"database is locked: {who} is in a transaction on {self._path} in this thread, and a second connection "
                    "would wait for it forever"
                )

    def _enter(self, mine: Turn, give_up_s: float) -> bool:
        if not self._waiting and self._turns.ask(mine) is mine:
            return True
        # Before it lines up behind a thread that waits for this one.
        self._refuse_to_wait_for_itself()
        called = threading.Lock()
        called.acquire()
        self._waiting.append(called)
        while True:
            left_s = give_up_s - time.monotonic()
            is_called = called.acquire(timeout=max(0.0, min(LOOK_AGAIN_S, left_s)))
            if (is_called or self._is_first(called)) and self._turns.ask(mine) is mine:
                self._forget(called)
                return True
            if left_s <= 0:
                self._forget(called)
                return False
            if is_called:  # another thread came between
                self._waiting.appendleft(called)

    def _is_first(self, called: threading.Lock) -> bool:
        return next(iter(self._waiting.copy()), None) is called

    def _forget(self, called: threading.Lock) -> None:
        with suppress(ValueError):  # it was called
            self._waiting.remove(called)


_lines: dict[str, Line] = {}


def line_for(path: str) -> Line:
    """Return the line of this process for a file."""
    return _lines.setdefault(path, Line(path))


def _after_fork_in_child() -> None:
    # The threads that stood in line do not exist in the child.
    for line in _lines.values():
        line.__init__(line._path)  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
