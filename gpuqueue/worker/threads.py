"""Runs plain functions without a device in threads; claims and writes nothing itself.

A thread that ends a job runs the next claimed one without coordination. Short jobs are claimed ahead of the threads, at most
PREFETCH_S of work, so one transaction carries many. No more threads are woken than the work needs: sixteen threads competing
for the interpreter over jobs of microseconds would take twice as long as one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from functools import partial

from gpuqueue.contract.current_job import publish_waits
from gpuqueue.domain.job import Lease
from gpuqueue.domain.view import PartInfo
from gpuqueue.store.job_threads import Waits
from gpuqueue.store.liveness import Liveness
from gpuqueue.worker.attempt import Kind, Pipeline
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import ServiceThread, part_info
from gpuqueue.worker.site import Site

PREFETCH_S = 0.02
PREFETCH_MOST = 128
NUDGE_S = 0.005  # claimed work that would take one thread longer than this is shared with another
STALE_S = 0.1  # a prefetched job that found no thread for this long is given back


class Threads:
    """`count` threads that run their jobs through the pipeline."""

    def __init__(
        self,
        site: Site,
        pipeline: Pipeline,
        kind: Kind,
        exchange: Exchange,
        liveness: Liveness,
        waits: Waits,
        orders: Orders,
        *,
        count: int,
    ) -> None:
        self._clock = site.clock
        self._orders = orders
        self._pipeline = pipeline
        self._kind = kind
        self._exchange = exchange
        self._liveness = liveness
        self._waits = waits
        self._size = count
        self._ready: deque[Lease] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._mean_s = PREFETCH_S
        self._ended_at_s = float("-inf")
        self._made_at_s = site.clock.monotonic()
        self._slots: dict[tuple[int, int], int] = {}  # of the liveness file, by the (job, lease) running in it
        self._stopping = False
        self._threads = [self._thread(slot) for slot in range(count)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def is_idle(self) -> bool:
        return not self._taken_count

    @property
    def has_free_thread(self) -> bool:
        """Whether a new job would find a free thread."""
        return self._taken_count < self._size

    @property
    def is_waiting(self) -> bool:
        """Whether a claimed job waits while threads are idle, for example behind a job that takes longer than usual."""
        return bool(self._ready and self._idle)

    def room(self) -> int:
        return max(0, self._size + self._prefetch() - len(self._ready) - len(self._slots))

    @property
    def _taken_count(self) -> int:
        # A job enters the slots before it leaves the ready queue, so it is always counted.
        return len(self._ready) + len(self._slots)

    def take(self, leases: Sequence[Lease]) -> None:
        if not leases:
            return
        with self._changed:
            self._ready.extend(leases)
            if self._idle:
                needed = 1 + int(len(self._ready) * self._mean_s / NUDGE_S)
                self._changed.notify(min(needed, len(self._ready), self._idle))

    def nudge(self) -> None:
        """Wake one more thread if claimed jobs wait."""
        with self._changed:
            if self._ready and self._idle:
                self._changed.notify()

    def give_back(self, *, older_than_s: float = 0.0) -> None:
        """Give back claimed jobs that no thread has started, without spending an attempt."""
        now = self._clock.now()
        back = []
        with self._changed:
            while self._ready and (now - self._ready[0].started_at).total_seconds() >= older_than_s:
                back.append(self._ready.popleft())
        self._exchange.give_back(back)

    def give_back_stale(self) -> None:
        """Give back prefetched jobs for which no thread became free, so another worker can take them."""
        if self._ready and self._idle == 0:
            self.give_back(older_than_s=STALE_S)

    def replace(self, lease: Lease) -> None:
        """Start another thread in place of the one that is stuck in this given-up job."""
        slot = self._slots.pop((lease.job_id, lease.lease))
        self._liveness.executes(slot, 0)
        thread = self._threads[slot] = self._thread(slot)
        thread.start()

    def stop(self) -> None:
        """End idle threads, and the others after their job."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def info(self) -> PartInfo:
        """Describe the threads as one part; one that is stuck in a given-up job has been replaced and does not count."""
        alive = all(thread.is_alive for thread in self._threads)
        return part_info("job", self._clock, alive=alive, since_s=None, last_s=max(self._ended_at_s, self._made_at_s))

    def _thread(self, slot: int) -> ServiceThread:
        return ServiceThread(f"job-{slot}", partial(self._work, slot), self._clock, self._orders)

    def _prefetch(self) -> int:
        # While all threads are in long jobs, short jobs would only be claimed, given back and claimed again.
        if self._mean_s >= PREFETCH_S / 2 or self._clock.monotonic() - self._ended_at_s > STALE_S:
            return 0
        return min(PREFETCH_MOST, int(PREFETCH_S / max(self._mean_s, 1e-6)))

    def _work(self, slot: int) -> None:
        publish_waits(partial(self._waits.publish, slot))
        while (lease := self._next(slot)) is not None:
            try:
                self._carry_out(lease, slot)
            except BaseException as error:
                self._pipeline.broken(lease, error, self._kind)
            if (lease.job_id, lease.lease) not in self._slots:
                return  # the job was given up: another thread has replaced this one and has its slot
            try:
                self._liveness.executes(slot, 0)
            finally:
                del self._slots[lease.job_id, lease.lease]
            if not self._ready or self._exchange.is_due:
                self._exchange.exchange_or_keep()

    def _carry_out(self, lease: Lease, slot: int) -> None:
        began_s = self._clock.monotonic()
        self._pipeline.carry_out(lease, self._kind, slot)
        if (lease.job_id, lease.lease) in self._slots:
            self._ended_at_s = self._clock.monotonic()
            self._mean_s += 0.1 * (self._ended_at_s - began_s - self._mean_s)

    def _next(self, slot: int) -> Lease | None:
        with self._changed:
            while not self._ready:
                if self._stopping:
                    return None
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            lease = self._ready[0]
            self._slots[lease.job_id, lease.lease] = slot
            return self._ready.popleft()
