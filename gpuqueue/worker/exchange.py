"""Writes outcomes and claims new jobs without a device in one transaction, the exchange; runs no job.

An outcome is written together with the next claim: within EXCHANGE_S, or when no claimed job is left. Each runner reports
how many more jobs it can take, and gets those of its kind; suspects go to the threads, each of which starts a process for one.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gpuqueue.domain.claim import Capacity
from gpuqueue.domain.errors import StoreError, describe
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome, Postponed
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.domain.units import to_us
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.site import Site

EXCHANGE_S = 0.01
logger = logging.getLogger("gpuqueue.worker")


class Runner(Protocol):
    """Runs claimed jobs of one kind."""

    def room(self) -> int:
        """Return how many more jobs it can take now."""

    def take(self, leases: Sequence[Lease]) -> None:
        """Take claimed jobs, and hand each outcome to the exchange when the job has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether no job that it took is running or waiting."""


class Exchange:
    """`asynchronous` returns the tasks with jobs for the coroutines; the threads take all others.

    `internal` returns the outcome that replaces one that cannot be written.
    """

    def __init__(
        self,
        site: Site,
        dispatcher: Dispatcher,
        orders: Orders,
        *,
        may_claim: Callable[[], bool],
        asynchronous: Callable[[], frozenset[str]],
        internal: Callable[[Lease, BaseException], Outcome],
    ) -> None:
        self._store = site.store
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._log = site.log
        self._dispatcher = dispatcher
        self._orders = orders
        self._may_claim = may_claim
        self._asynchronous = asynchronous
        self._internal = internal
        self._ended: deque[Outcome] = deque()
        self._unwritten_count = 0
        self._lock = threading.Lock()
        self._exchanged_at_s = 0.0
        self._stopping = False
        self._threads: Runner
        self._coroutines: Runner
        self._is_alone = False  # whether a job was claimed that must be the only one in this process
        self._claiming = Capacity(0)  # the capacity that exchanges in progress are about to use

    def claim_for(self, threads: Runner, coroutines: Runner) -> None:
        """Set the runners that take the claimed jobs."""
        self._threads, self._coroutines = threads, coroutines

    @property
    def is_idle(self) -> bool:
        """Whether no job is claimed, running, or waiting to be written."""
        if not (self._threads.is_idle and self._coroutines.is_idle):  # first: outcomes are added before their runner is idle
            return False
        with self._lock:
            return not self._ended and not self._unwritten_count

    @property
    def is_alone(self) -> bool:
        """Whether a job runs that must be the only one in this process."""
        return self._is_alone and not self._threads.is_idle

    @property
    def is_due(self) -> bool:
        return self._clock.monotonic() - self._exchanged_at_s > EXCHANGE_S

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of an ended attempt."""
        self._ended.append(outcome)

    def give_back(self, leases: Sequence[Lease]) -> None:
        """Return claimed jobs that have not started, without spending an attempt."""
        self._ended.extend(Postponed(lease, "released", to_us(lease.started_at)) for lease in leases)

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True

    def exchange(self, *, alone: int | None = None) -> int:
        """Write outcomes and claim as many jobs as the runners can take; returns that number. Raises: StoreError.

        `alone` is a suspect to claim instead, if the runners are idle; no other job is claimed until it has ended.
        """
        asynchronous = self._asynchronous()
        with self._lock:
            capacity = self._reserve_room(asynchronous) if alone is None else self._reserve_all(alone)
            ended: list[Outcome] = []
            while self._ended:
                ended.append(self._ended.popleft())
            self._unwritten_count += len(ended)
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
        except BaseException:  # the outcomes must not be lost with it: one of them may be what cannot be written
            self._finish_each(ended)
            raise
        finally:
            with self._lock:
                self._unwritten_count -= len(ended)
                before = self._claiming
                self._claiming = Capacity(before.threads - capacity.threads, before.coroutines - capacity.coroutines)
        for lease in late:
            self._log.late(lease)
        return len(leases)

    def _finish_each(self, ended: Sequence[Outcome]) -> None:
        """Write outcomes one by one; one that cannot be written for what it is is replaced by that error."""
        for outcome in ended:
            try:
                try:
                    self._store.attempts.finish([outcome], now_us=self._clock.wall())
                except StoreError:
                    raise
                except BaseException as error:
                    self._store.attempts.finish([self._internal(outcome.lease, error)], now_us=self._clock.wall())
            except BaseException:
                logger.exception("the outcome of job %d will be written later", outcome.lease.job_id)
                self._ended.append(outcome)

    def _reserve_room(self, asynchronous: frozenset[str]) -> Capacity:
        """Reserve all free capacity for one exchange, so a concurrent one does not use it too."""
        if self._stopping or self._orders.all_begun:
            return Capacity(0)
        if self._is_alone:
            if self._claiming.threads or not self._threads.is_idle:
                return Capacity(0)
            self._is_alone = False  # it has ended
        threads = max(0, self._threads.room() - self._claiming.threads)
        coroutines = max(0, self._coroutines.room() - self._claiming.coroutines) if asynchronous else 0
        suspects = self._dispatcher.suspects
        if suspects and threads:
            self._dispatcher.suspects = ()  # until the next decision
        self._claiming = Capacity(self._claiming.threads + threads, self._claiming.coroutines + coroutines)
        return Capacity(threads, coroutines, asynchronous, suspects)

    def _reserve_all(self, suspect: int) -> Capacity:
        """Reserve this process for one job."""
        is_idle = self._threads.is_idle and self._coroutines.is_idle and self._claiming == Capacity(0)
        if self._stopping or self._orders.all_begun or not is_idle:
            return Capacity(0)
        self._is_alone = True
        self._claiming = Capacity(1)
        return Capacity(1, suspects=(suspect,))

    def _hand_out(self, leases: Sequence[Lease], capacity: Capacity) -> None:
        """Give each runner the jobs of its kind; a suspect never runs on the event loop."""
        plain = []
        for lease in leases:
            if lease.task in capacity.asynchronous and lease.crashes is None:
                self._hand_to(self._coroutines, [lease])
            else:
                plain.append(lease)
        self._hand_to(self._threads, plain)

    def _hand_to(self, runner: Runner, leases: Sequence[Lease]) -> None:
        try:
            runner.take(leases)
        except BaseException as error:  # they are claimed, and nobody else would run them
            logger.error(
                "%d claimed job(s) are returned to their queues: %s\n%s", len(leases), describe(error), safe_trace(error)
            )
            self.give_back(leases)

    def exchange_or_keep(self) -> None:
        """Exchange; when the store cannot be written now, keep the outcomes for the next time."""
        try:
            self.exchange()
        except StoreError as error:
            logger.warning("%s; the outcome will be written later", error)
        except Exception:
            logger.exception("claiming jobs failed; trying again")
