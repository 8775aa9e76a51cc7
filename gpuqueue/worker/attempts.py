"""Owns the attempts that run in this worker now: running them, and stopping those that were cancelled or are overdue.

A thread cannot be killed. An attempt that goes on after it was asked to stop is given up after ABANDON_S: its outcome is
written, its thread goes on, and what it still returns is dropped. A device stays reserved until the thread has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from gpuqueue.domain import JobErrorRecord, Lease
from gpuqueue.errors import StoreError
from gpuqueue.executors import Executor
from gpuqueue.store import Store, queries
from gpuqueue.store.outcomes import Completed, Ended, Outcome, Postponed
from gpuqueue.units import to_us
from gpuqueue.worker.attempt import Attempt, Interruption, Judge
from gpuqueue.worker.output import Output

ABANDON_S = 2.0
UNKNOWN_TASK_WAIT_S = 30.0
logger = logging.getLogger("gpuqueue.worker")


class Attempts:
    """`on_given_up` is called with each lease whose thread is stuck, after its outcome was written."""

    def __init__(
        self,
        store: Store,
        executors: Mapping[str, Executor],
        judge: Judge,
        output: Output,
        *,
        worker_id: str,
        now: Callable[[], datetime],
        on_given_up: Callable[[Lease], None],
    ) -> None:
        self._store = store
        self._executors = executors
        self._judge = judge
        self._output = output
        self._worker_id = worker_id
        self._now = now
        self._on_given_up = on_given_up
        self._running: dict[tuple[int, int], Attempt] = {}
        self._stopping: Interruption | None = None

    def run(self, lease: Lease, prepare: Callable[[Attempt], None] | None = None) -> tuple[Outcome, BaseException | None] | None:
        """Run an attempt; returns its outcome and the error behind it, or None when it was given up."""
        executor = self._executors.get(lease.task)
        if executor is None:
            return self._unknown_task(lease), None
        attempt = Attempt(lease, emit=self._output.emit)
        key = (lease.job_id, lease.lease)
        self._running[key] = attempt
        if self._stopping is not None:
            attempt.interrupt(self._stopping)
        ended = self._judge.run(attempt, executor, None if prepare is None else lambda: prepare(attempt))
        if not attempt.close():
            return None
        self._running.pop(key, None)
        self._output.flush(lease)
        _tell(ended[0])
        return ended

    @property
    def any_running(self) -> bool:
        return bool(self._running)

    def stop_cancelled(self) -> None:
        """Interrupt the attempts that a person wants stopped."""
        if not self._running:
            return
        with self._store.reading() as connection:
            wanted = queries.cancel_requests(connection, self._worker_id)
        for key in wanted:
            attempt = self._running.get(key)
            if attempt is not None:
                attempt.interrupt("cancelled")

    def stop_overdue(self) -> None:
        """Interrupt the attempts past their deadline, and give up those that do not stop."""
        now_s = time.monotonic()
        for attempt in list(self._running.values()):
            if attempt.deadline_s is not None and now_s >= attempt.deadline_s:
                attempt.interrupt("timed_out")
            if attempt.interruption is not None and now_s - attempt.interrupted_at_s >= ABANDON_S:
                self._give_up(attempt)

    def stop_all(self, why: Interruption) -> None:
        """Interrupt every attempt, also those that begin from now on."""
        self._stopping = why
        for attempt in list(self._running.values()):
            attempt.interrupt(why)

    def give_up_all(self) -> None:
        """Write the outcome of every attempt that still runs."""
        for attempt in list(self._running.values()):
            self._give_up(attempt)

    def next_moment_s(self) -> float | None:
        """Say when `stop_overdue` has something to do, on the clock of time.monotonic()."""
        moments = []
        for attempt in list(self._running.values()):
            if attempt.interruption is not None:
                moments.append(attempt.interrupted_at_s + ABANDON_S)
            elif attempt.deadline_s is not None:
                moments.append(attempt.deadline_s)
        return min(moments, default=None)

    def _give_up(self, attempt: Attempt) -> None:
        lease = attempt.lease
        outcome = self._judge.interrupted(attempt)
        # A thread that ends meanwhile waits for the write: it would free the device of a job that still counts as running.
        try:
            if not attempt.close(lambda: self._written(outcome)):
                return
        except StoreError as error:
            logger.warning("%s; trying again", error)
            return
        self._running.pop((lease.job_id, lease.lease), None)
        logger.warning(
            "job %d: %s does not stop (%s) and is given up, while its thread goes on",
            lease.job_id,
            lease.task,
            attempt.interruption,
        )
        self._on_given_up(lease)

    def _written(self, outcome: Outcome) -> None:
        self._store.finish([outcome], now_us=to_us(self._now()))

    def _unknown_task(self, lease: Lease) -> Outcome:
        message = f"this worker does not know the task {lease.task!r}; start it with --app MODULE:QUEUE_OBJECT, which defines it"
        logger.error("job %d: %s", lease.job_id, message)
        at = self._now() + timedelta(seconds=UNKNOWN_TASK_WAIT_S)
        return Postponed(lease, "snoozed", to_us(at), spent=False, error=JobErrorRecord("unknown_task", message))


def _tell(outcome: Outcome) -> None:
    """Log how an attempt ended; of jobs without a device only what went wrong, there may be thousands a second."""
    lease = outcome.lease
    if isinstance(outcome, Completed):
        if lease.placement is not None:
            logger.info("job %d of %s completed", lease.job_id, lease.queue)
    elif isinstance(outcome, Ended):
        logger.warning("job %d of %s is %s: %s", lease.job_id, lease.queue, outcome.state, outcome.error.message)
    else:
        why = f": {outcome.error.message}" if outcome.error else ""
        logger.warning("job %d of %s goes back (%s)%s", lease.job_id, lease.queue, outcome.outcome, why)
