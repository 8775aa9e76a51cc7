"""Runs asynchronous tasks without a device concurrently on the event loop; claims and writes nothing itself.

A separate thread judges and writes what ends on the loop, so the loop never waits for the database.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from gpuqueue.domain.job import Lease
from gpuqueue.store.liveness import Liveness
from gpuqueue.worker.attempt import Kind, Pipeline
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.running import Attempt, Ran
from gpuqueue.worker.service_thread import ServiceThread


class Coroutines:
    """At most `limit` at once; the first one uses slot `first_slot` of the liveness file."""

    def __init__(
        self,
        pipeline: Pipeline,
        kind: Kind,
        exchange: Exchange,
        liveness: Liveness,
        clock: Clock,
        orders: Orders,
        *,
        limit: int,
        first_slot: int,
    ) -> None:
        self._pipeline = pipeline
        self._kind = kind
        self._exchange = exchange
        self._liveness = liveness
        self._limit = limit
        self._lock = threading.Lock()
        self._free_slots = list(range(first_slot, first_slot + limit))
        self._slots: dict[tuple[int, int], int] = {}  # of the liveness file, by the (job, lease) running in it
        self._ran: SimpleQueue[tuple[Attempt, Ran] | None] = SimpleQueue()
        self.thread = ServiceThread("coroutines", self._work, clock, orders)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self._ran.put(None)
        self.thread.join()

    @property
    def is_idle(self) -> bool:
        return not self._slots

    def room(self) -> int:
        return self._limit - len(self._slots)

    def take(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            with self._lock:
                slot = self._free_slots.pop()
                self._slots[lease.job_id, lease.lease] = slot
            try:
                self._liveness.executes(slot, lease.job_id)
                self._pipeline.start(lease, self._kind, self._ran.put)
            except BaseException as error:
                self._pipeline.broken(lease, error, self._kind)
                self.forget(lease)

    def forget(self, lease: Lease) -> bool:
        """Free the slot of an attempt that ended, or was given up and keeps running; returns whether it had one."""
        with self._lock:
            slot = self._slots.pop((lease.job_id, lease.lease), None)
            if slot is None:
                return False
            self._free_slots.append(slot)
            self._liveness.executes(slot, 0)
            return True

    def _work(self) -> None:
        while (ran := self._ran.get()) is not None:
            self._conclude(*ran)
            try:  # attempts that ended meanwhile go into the same transaction
                while (ran := self._ran.get_nowait()) is not None:
                    self._conclude(*ran)
            except Empty:
                with self.thread.pulse:
                    self._exchange.exchange_or_keep()
            else:
                return

    def _conclude(self, attempt: Attempt, ran: Ran) -> None:
        try:
            with self.thread.pulse:
                self._pipeline.conclude(attempt, ran, self._kind)
        except BaseException as error:
            self._pipeline.broken(attempt.lease, error, self._kind)
        self.forget(attempt.lease)
