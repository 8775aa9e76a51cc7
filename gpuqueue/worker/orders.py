"""Keeps what a worker is told while it works: to stop, to hurry, and how many jobs it may begin."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("gpuqueue.worker")


class Orders:
    """Given by any thread, also inside a signal's handler; `wake` is what makes the worker look at once.

    `stop` is set when nothing more is to begin, `at_once` when what runs is to be given back now. `all_begun` turns true when
    as many jobs have begun as the worker is to run. `gone` says what became of the file, where it is not there any more.
    """

    def __init__(self, *, max_jobs: int | None = None, grace_s: float = 0.0) -> None:
        self.stop = threading.Event()
        self.at_once = threading.Event()
        self.grace_s = grace_s
        self.all_begun = max_jobs == 0
        self.gone = ""
        self.wake: Callable[[], None] | None = None
        self._left = max_jobs
        self._counting = threading.Lock()

    def request_stop(self) -> None:
        """Ask the worker to stop; a second time, to give running jobs back at once."""
        if self.stop.is_set():
            self.at_once.set()
        self.stop.set()
        self._wake()

    def file_gone(self, what: str) -> None:
        """Stop at once: nothing that still runs can be written."""
        self.gone = what
        logger.error("%s; it stops", what)
        self.at_once.set()
        self.stop.set()
        self._wake()

    def may_begin(self) -> bool:
        """Count a job that is about to begin; returns False when it is one too many."""
        if self._left is None:
            return True
        with self._counting:
            if self.all_begun:
                return False
            self._left -= 1
            self.all_begun = self._left == 0
        if self.all_begun:
            self._wake()
        return True

    def _wake(self) -> None:
        if self.wake is not None:
            self.wake()
