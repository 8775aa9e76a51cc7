"""Owns a worker's lease: extends it in time, and stops every attempt before it ends when that fails; knows no job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from gpuqueue.domain.errors import StoreError
from gpuqueue.store import Store
from gpuqueue.worker.log import WorkerLog

SAFE_PART = 0.8  # of the lease; an attempt that could not be extended by then is stopped
logger = logging.getLogger("gpuqueue.worker")


class Heartbeat:
    """Extends the lease at a third of its length, in a thread of its own. `on_lost` is called once, when the lease is lost."""

    def __init__(
        self,
        store: Store,
        worker_id: str,
        *,
        lease_s: float,
        now_us: Callable[[], int],
        on_lost: Callable[[], None],
        log: WorkerLog,
    ) -> None:
        self._store = store
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._now_us = now_us
        self._on_lost = on_lost
        self._log = log
        self._stop = threading.Event()
        self.lost = False
        self._extended_at_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="gpuqueue-heartbeat", daemon=True)

    @property
    def is_fresh(self) -> bool:
        """Whether the lease surely still runs; not so in a process that was stopped and goes on, which may have been rescued."""
        return not self.lost and time.monotonic() - self._extended_at_s < self._lease_s * SAFE_PART

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            try:
                held = self._store.workers.extend(self._worker_id, expires_at_us=self._now_us() + int(self._lease_s * 1e6))
            except StoreError as error:
                logger.warning("the lease could not be extended: %s", error)
                held = self.is_fresh
            else:
                if held:
                    self._extended_at_s = time.monotonic()
            if not held:
                self._log.lost()
                self.lost = True
                self._on_lost()
                return
