"""Extends a worker's lease, and publishes how its parts are; when that fails, stops every attempt before the lease ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.view import PartInfo
from gpuqueue.store.wakeups import Listener
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import Pulse, ServiceThread
from gpuqueue.worker.site import Site

SAFE_PART = 0.8  # of the lease; if it could not be extended by then, attempts are stopped
logger = logging.getLogger("gpuqueue.worker")


class Heartbeat:
    """Extends the lease after each third of it, in its own thread, and wakes the worker when it is lost."""

    def __init__(
        self,
        site: Site,
        attempts: Attempts,
        listener: Listener,
        orders: Orders,
        *,
        lease_s: float,
    ) -> None:
        self._store = site.store
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._log = site.log
        self._attempts = attempts
        self._listener = listener
        self._lease_s = lease_s
        self._stop = threading.Event()
        self.lost = False
        self._extended_at_s = self._clock.monotonic()
        self.thread = ServiceThread("heartbeat", self._run, site.clock, orders)
        self.parts: Callable[[], Sequence[PartInfo]] = tuple
        self.pulses: Sequence[Pulse] = ()  # of the parts that must never hang

    def is_fresh(self) -> bool:
        """Whether the lease is certainly still valid; not in a process that was suspended, as its jobs may have been rescued."""
        return not self.lost and self._clock.monotonic() - self._extended_at_s < self._lease_s * SAFE_PART

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            with self.thread.pulse:
                held = self._extend()
                for pulse in self.pulses:
                    pulse.tell_if_stuck()
            if not held:
                self._log.lost()
                self.lost = True
                self._attempts.stop_all("lease_lost")
                self._listener.ring()
                return

    def _extend(self) -> bool:
        """Extend the lease; returns whether it is held."""
        asked_at_s = self._clock.monotonic()
        try:
            expires_at_us = self._clock.wall() + int(self._lease_s * 1e6)
            held = self._store.workers.extend(self._worker_id, expires_at_us=expires_at_us, parts=self.parts())
        except StoreError as error:
            logger.warning("the lease could not be extended: %s", error)
            return self.is_fresh()
        if held:
            self._extended_at_s = asked_at_s
        return held
