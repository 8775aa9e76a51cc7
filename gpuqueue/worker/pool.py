"""Owns the threads that run jobs without a device, and the exchange: ended attempts out, new claims in; chooses nothing.

A thread that ends a job runs the next claimed one without asking anybody; what ended is written together with the next
claim, at the latest EXCHANGE_S after it ended or when nothing claimed is left. Short jobs are claimed ahead of the
threads, by PREFETCH_S of work at most, so that one transaction carries many. No more threads are woken than the work
needs: sixteen that compete for the interpreter over jobs of microseconds would take twice as long as one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from gpuqueue.domain import Lease
from gpuqueue.errors import StoreError
from gpuqueue.store.life import Life
from gpuqueue.store.outcomes import Outcome, Postponed
from gpuqueue.units import to_us
from gpuqueue.worker.dispatcher import Dispatcher

EXCHANGE_S = 0.01
PREFETCH_S = 0.02
PREFETCH_MOST = 128
NUDGE_S = 0.005  # claimed work that would take one thread longer than this is shared with another
STALE_S = 0.1  # a prefetched job that found no thread for so long goes back
logger = logging.getLogger("gpuqueue.worker")


class Pool:
    """`threads` runner threads; `run` runs one lease and returns its outcome, or None when somebody else wrote it."""

    def __init__(self, dispatcher: Dispatcher, life: Life, *, threads: int, run: Callable[[Lease], Outcome | None]) -> None:
        self._dispatcher = dispatcher
        self._life = life
        self._size = threads
        self._run = run
        self._ready: deque[Lease] = deque()
        self._ended: deque[Outcome] = deque()
        self._changed = threading.Condition()
        self._in_flight = 0  # claimed and not yet written
        self._idle = 0
        self._mean_s = PREFETCH_S
        self._ended_at_s = float("-inf")
        self._exchanged_at_s = 0.0
        self._slots: dict[tuple[int, int], int] = {}  # of the life file, by (job, lease)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"gpuqueue-job-{slot}", daemon=True) for slot in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed, runs, or waits to be written."""
        return self._in_flight == 0

    @property
    def has_room(self) -> bool:
        """Whether a job that came now would find a thread."""
        return self._in_flight < self._size

    def exchange(self) -> int:
        """Write what ended and claim what there are threads for; returns how many were claimed."""
        ended = []
        while self._ended:
            ended.append(self._ended.popleft())
        with self._changed:
            limit = 0 if self._stopping else self._size + self._prefetch() - (self._in_flight - len(ended))
        if not ended and limit <= 0:
            return 0
        self._exchanged_at_s = time.monotonic()
        try:
            late, leases = self._dispatcher.exchange(ended, limit=limit)
        except StoreError:
            self._ended.extend(ended)
            raise
        for lease in late:
            logger.warning("job %d: attempt %d ended after its lease was lost; nothing was changed", lease.job_id, lease.attempt)
        with self._changed:
            self._in_flight += len(leases) - len(ended)
            self._ready.extend(leases)
            self._wake()
        return len(leases)

    @property
    def is_waiting(self) -> bool:
        """Whether a claimed job waits while threads are idle, as behind a job that takes longer than its forerunners."""
        return bool(self._ready and self._idle)

    def nudge(self) -> None:
        """Wake one more thread when claimed jobs wait."""
        with self._changed:
            if self._ready and self._idle:
                self._changed.notify()

    def give_back(self, *, older_than_s: float = 0.0) -> None:
        """Return claimed jobs that no thread has begun, unspent."""
        now_us = to_us(self._dispatcher.now())
        back = []
        with self._changed:
            while self._ready and now_us - to_us(self._ready[0].started_at) >= older_than_s * 1e6:
                back.append(self._ready.popleft())
        if back:
            self._ended.extend(Postponed(lease, "released", to_us(lease.started_at), spent=False) for lease in back)

    def give_back_stale(self) -> None:
        """Return prefetched jobs for which no thread became free, so that another worker may take them."""
        if self._ready and self._idle == 0:
            self.give_back(older_than_s=STALE_S)

    def replace_thread(self, lease: Lease) -> None:
        """Start another thread in place of the one that is stuck in this job, which was given up."""
        with self._changed:
            self._in_flight -= 1
            slot = self._slots.pop((lease.job_id, lease.lease))
        self._life.executes(slot, 0)
        thread = threading.Thread(target=self._work, args=(slot,), name=f"gpuqueue-job-{slot}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Claim nothing more; idle threads end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._ready and self._idle:
            needed = 1 + int(len(self._ready) * self._mean_s / NUDGE_S)
            self._changed.notify(min(needed, len(self._ready), self._idle))

    def _prefetch(self) -> int:
        # Behind threads that are all in long jobs, what was short so far would only be claimed, given back and claimed again.
        if self._mean_s >= PREFETCH_S / 2 or time.monotonic() - self._ended_at_s > STALE_S:
            return 0
        return min(PREFETCH_MOST, int(PREFETCH_S / max(self._mean_s, 1e-6)))

    def _work(self, slot: int) -> None:
        while (lease := self._next()) is not None:
            key = (lease.job_id, lease.lease)
            self._slots[key] = slot
            self._life.executes(slot, lease.job_id)
            began_s = time.monotonic()
            outcome = self._run(lease)
            if outcome is None:
                return  # this thread was replaced, and its slot is another's
            self._life.executes(slot, 0)
            del self._slots[key]
            self._ended_at_s = time.monotonic()
            self._mean_s += 0.1 * (self._ended_at_s - began_s - self._mean_s)
            self._ended.append(outcome)
            if not self._ready or time.monotonic() - self._exchanged_at_s > EXCHANGE_S:
                try:
                    self.exchange()
                except StoreError as error:
                    logger.warning("%s; the outcome is kept and written later", error)

    def _next(self) -> Lease | None:
        with self._changed:
            while not self._ready:
                if self._stopping:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return self._ready.popleft()
