"""Tracks this worker's running attempts, and stops those that are cancelled, preempted or overdue.

Neither a thread nor a coroutine can be killed. An attempt that is still running ABANDON_S after it was asked to stop is
given up: its outcome is written, it keeps running, and its result is dropped. Its device stays reserved until it has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.running import Attempt, Interruption
from gpuqueue.worker.site import Site

ABANDON_S = 2.0
logger = logging.getLogger("gpuqueue.worker")


class Attempts:
    """The running attempts of one worker, by job and lease. Safe to use from any thread."""

    def __init__(self, site: Site, judge: Judge, output: Output, orders: Orders) -> None:
        self._store = site.store
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._log = site.log
        self._judge = judge
        self._output = output
        self._orders = orders
        self._running: dict[tuple[int, int], Attempt] = {}
        self._stopping: Interruption | None = None
        self.may_go_on: Callable[[], bool] = lambda: True  # of attempts: whether the lease certainly still runs

    @property
    def any_running(self) -> bool:
        return bool(self._running)

    def begin(self, lease: Lease) -> Attempt:
        """Add an attempt; it is interrupted at once when nothing may start any more."""
        attempt = Attempt(lease, self._output, self._clock, self.may_go_on)
        self._running[lease.job_id, lease.lease] = attempt
        if self._stopping is not None or not self._orders.may_begin():
            attempt.interrupt(self._stopping or "stopping")
        self._log.attempt_started(lease)
        return attempt

    def end(self, attempt: Attempt) -> bool:
        """Remove an attempt that has run; returns False when it was given up, and its outcome written, meanwhile."""
        if not attempt.close():
            return False
        self._running.pop((attempt.lease.job_id, attempt.lease.lease), None)
        return True

    def forget(self, lease: Lease) -> None:
        """Remove an attempt that could not be handled, if it is still there."""
        attempt = self._running.pop((lease.job_id, lease.lease), None)
        if attempt is not None:
            attempt.close()

    # --- stopping ---

    def stop_requested(self) -> None:
        """Interrupt the attempts that were cancelled or preempted."""
        if not self._running:
            return
        with self._store.reading() as reads:
            wanted = reads.stop_requests(self._worker_id)
        for job_id, lease, cancelled in wanted:
            attempt = self._running.get((job_id, lease))
            if attempt is not None:
                attempt.interrupt("cancelled" if cancelled else "preempted")

    def stop_overdue(self) -> list[Lease]:
        """Interrupt the attempts past their deadline, and give up those that do not stop; returns those given up."""
        now_s = self._clock.monotonic()
        given_up = []
        for attempt in list(self._running.values()):
            if attempt.deadline_s is not None and now_s >= attempt.deadline_s:
                attempt.interrupt("timed_out")
            if attempt.interruption is not None and now_s - attempt.interrupted_at_s >= ABANDON_S and self._give_up(attempt):
                given_up.append(attempt.lease)
        return given_up

    def stop_all(self, why: Interruption) -> None:
        """Interrupt every attempt, including those that start from now on."""
        self._stopping = why
        for attempt in list(self._running.values()):
            attempt.interrupt(why)

    def give_up_all(self) -> None:
        """Write the outcome of every attempt that is still running."""
        for attempt in list(self._running.values()):
            self._give_up(attempt)

    def next_moment_s(self) -> float | None:
        """Return when `stop_overdue` next has something to do, on the monotonic clock."""
        moments = []
        for attempt in list(self._running.values()):
            if attempt.interruption is not None:
                moments.append(attempt.interrupted_at_s + ABANDON_S)
            elif attempt.deadline_s is not None:
                moments.append(attempt.deadline_s)
        return min(moments, default=None)

    def _give_up(self, attempt: Attempt) -> bool:
        lease = attempt.lease
        outcome = self._judge.interrupted(attempt)
        # A thread that ends meanwhile waits for the write: else it would release the device of a job still marked as running.
        try:
            if not attempt.close(lambda: self._written(outcome)):
                return False
        except StoreError as error:
            logger.warning("%s; trying again", error)
            return False
        self._running.pop((lease.job_id, lease.lease), None)
        self._log.abandoned(lease, attempt.interruption or "")
        self._log.ended(outcome, self._clock.monotonic() - attempt.began_s)
        return True

    def _written(self, outcome: Outcome) -> None:
        self._store.attempts.finish([outcome], now_us=self._clock.wall())
