"""Owns the asynchronous tasks without a device that run side by side on the event loop; claims and writes nothing itself.

What ends on the loop is judged and written by a thread of its own, so that the loop never waits for the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from gpuqueue.domain.job import Lease
from gpuqueue.store.liveness import Life
from gpuqueue.worker.attempt import Attempt
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.exchange import Exchange

logger = logging.getLogger("gpuqueue.worker")
Ended = tuple[Attempt, Any, BaseException | None]


class Coroutines:
    """At most `limit` at once; `on_error` hears of the error behind each outcome that had one."""

    def __init__(
        self,
        exchange: Exchange,
        attempts: Attempts,
        life: Life,
        *,
        limit: int,
        first_slot: int,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._exchange = exchange
        self._attempts = attempts
        self._life = life
        self._limit = limit
        self._on_error = on_error
        self._lock = threading.Lock()
        self._free_slots = list(range(first_slot, first_slot + limit))
        self._slots: dict[tuple[int, int], int] = {}  # of the life file, by (job, lease), of what runs
        self._ended: SimpleQueue[Ended | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="gpuqueue-coroutines", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.put(None)
        self._thread.join()

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
            self._life.executes(slot, lease.job_id)
            self._attempts.start(lease, lambda *ended: self._ended.put(ended))

    def forget(self, lease: Lease) -> bool:
        """Free the place of an attempt that ended, or that was given up and goes on; returns whether it had one."""
        with self._lock:
            slot = self._slots.pop((lease.job_id, lease.lease), None)
            if slot is None:
                return False
            self._life.executes(slot, 0)
            self._free_slots.append(slot)
            return True

    def _work(self) -> None:
        while (ended := self._ended.get()) is not None:
            self._end(ended)
            try:  # what ended meanwhile goes into the same transaction
                while (ended := self._ended.get_nowait()) is not None:
                    self._end(ended)
            except Empty:
                self._exchange.exchange_or_keep()
            else:
                return

    def _end(self, ended: Ended) -> None:
        attempt, value, error = ended
        judged = self._attempts.end(attempt, value, error)
        if judged is not None:
            self._exchange.add(judged.outcome)
            if judged.error is not None:
                self._on_error(judged.error)
        self.forget(attempt.lease)
