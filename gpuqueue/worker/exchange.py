"""Owns the exchange of jobs without a device: ended attempts out, new claims in, in one transaction; runs none.

What ended is written together with the next claim, at the latest EXCHANGE_S after it ended or when nothing claimed is
left. Each runner says how many more jobs it has room for, and gets those of its kind.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gpuqueue.domain.claim import Capacity
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome, Postponed
from gpuqueue.domain.units import to_us
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.site import Site

EXCHANGE_S = 0.01
logger = logging.getLogger("gpuqueue.worker")


class Runner(Protocol):
    """Runs claimed jobs of one kind."""

    def room(self) -> int:
        """How many more jobs it takes now."""

    def take(self, leases: Sequence[Lease]) -> None:
        """Take claimed jobs, and hand each one's outcome to the exchange when it has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing that it took runs or waits."""


class Exchange:
    """`asynchronous` names the tasks whose jobs the coroutines take; all others' are taken by the threads."""

    def __init__(
        self,
        site: Site,
        dispatcher: Dispatcher,
        orders: Orders,
        *,
        may_claim: Callable[[], bool],
        asynchronous: Callable[[], frozenset[str]],
    ) -> None:
        self._store = site.store
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._log = site.log
        self._dispatcher = dispatcher
        self._orders = orders
        self._may_claim = may_claim
        self._asynchronous = asynchronous
        self._ended: deque[Outcome] = deque()
        self._unwritten_count = 0
        self._lock = threading.Lock()
        self._exchanged_at_s = 0.0
        self._stopping = False
        self._threads: Runner
        self._coroutines: Runner
        self._claiming = Capacity(0)  # the room that exchanges under way are about to fill

    def claim_for(self, threads: Runner, coroutines: Runner) -> None:
        """Say who takes what is claimed."""
        self._threads, self._coroutines = threads, coroutines

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed, runs, or waits to be written."""
        if not (self._threads.is_idle and self._coroutines.is_idle):  # first: what ends is added before its runner is idle
            return False
        with self._lock:
            return not self._ended and not self._unwritten_count

    @property
    def is_due(self) -> bool:
        return self._clock.monotonic() - self._exchanged_at_s > EXCHANGE_S

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of an ended attempt."""
        self._ended.append(outcome)

    def give_back(self, leases: Sequence[Lease]) -> None:
        """Take claimed jobs that have not begun, to return them unspent."""
        self._ended.extend(Postponed(lease, "released", to_us(lease.started_at)) for lease in leases)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True

    def exchange(self) -> int:
        """Write what ended and claim what there is room for; returns how many were claimed. Raises: StoreError."""
        ended: list[Outcome] = []
        asynchronous = self._asynchronous()
        with self._lock:
            while self._ended:
                ended.append(self._ended.popleft())
            self._unwritten_count += len(ended)
            capacity = self._reserve_room(asynchronous)
        try:
            if not (ended or capacity.threads or capacity.coroutines):
                return 0
            self._exchanged_at_s = self._clock.monotonic()
            late, leases = self._store.attempts.finish_and_claim(
                ended,
                worker_id=self._worker_id,
                queues=self._dispatcher.plain if self._may_claim() else (),
                rules=self._dispatcher.rules,
                capacity=capacity,
                now_us=self._clock.wall(),
            )
            if leases:
                self._hand_out(leases, capacity)
        except StoreError:
            self._ended.extend(ended)
            raise
        finally:
            with self._lock:
                self._unwritten_count -= len(ended)
                before = self._claiming
                self._claiming = Capacity(before.threads - capacity.threads, before.coroutines - capacity.coroutines)
        for lease in late:
            self._log.late(lease)
        return len(leases)

    def _reserve_room(self, asynchronous: frozenset[str]) -> Capacity:
        """Take all the room there is for one exchange, so that another at the same time does not fill it too."""
        if self._stopping or self._orders.all_begun:
            return Capacity(0)
        threads = max(0, self._threads.room() - self._claiming.threads)
        coroutines = max(0, self._coroutines.room() - self._claiming.coroutines) if asynchronous else 0
        self._claiming = Capacity(self._claiming.threads + threads, self._claiming.coroutines + coroutines)
        return Capacity(threads, coroutines, asynchronous)

    def _hand_out(self, leases: Sequence[Lease], capacity: Capacity) -> None:
        if capacity.coroutines:
            self._coroutines.take([lease for lease in leases if lease.task in capacity.asynchronous])
            leases = [lease for lease in leases if lease.task not in capacity.asynchronous]
        self._threads.take(leases)

    def exchange_or_keep(self) -> None:
        """Exchange; where the store cannot be written now, keep what ended for the next time."""
        try:
            self.exchange()
        except StoreError as error:
            logger.warning("%s; the outcome is kept and written later", error)
