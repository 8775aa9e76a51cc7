"""Holds the orders given to a running worker: to stop, to stop at once, and how many jobs it may start."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from gpuqueue.domain.errors import GPUQueueError, StoreError

logger = logging.getLogger("gpuqueue.worker")


class Orders:
    """Given by any thread, also in a signal handler; `wake` makes the worker check them at once.

    `stop` is set when no more jobs may start, `at_once` when running ones must be given back now. `all_begun` turns true when
    the worker has started as many jobs as it may run. `failure` is why the worker cannot go on, None while it can.
    """

    def __init__(self, *, max_jobs: int | None = None, grace_s: float = 0.0) -> None:
        self.stop = threading.Event()
        self.at_once = threading.Event()
        self.grace_s = grace_s
        self.all_begun = max_jobs == 0
        self.failure: GPUQueueError | None = None
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
        """Stop at once: no outcome can be written any more."""
        self.at_once.set()
        self.fail(StoreError(f"{what}; start the worker again"))

    def fail(self, error: GPUQueueError) -> None:
        """Stop, and end with this error: the worker cannot go on. The first error counts."""
        self.failure = self.failure or error
        logger.error("the worker stops: %s", error)
        self.stop.set()
        self._wake()

    def may_begin(self) -> bool:
        """Count a job that is about to start; returns False when it is one too many, or the worker stops."""
        if self.stop.is_set():
            return False
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
