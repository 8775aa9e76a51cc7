"""Owns the attempts that run in this worker now: running them, and stopping those that were cancelled or are overdue.

Neither a thread nor a coroutine can be killed. An attempt that goes on after it was asked to stop is given up after
ABANDON_S: its outcome is written, it goes on, and what it still returns is dropped. A device stays reserved until it has
ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple, cast

from gpuqueue.contract.current_job import running
from gpuqueue.contract.executor import AsyncExecutor, Executor, is_async
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import JobErrorRecord, Lease
from gpuqueue.domain.outcomes import Completed, Outcome, Postponed
from gpuqueue.domain.units import to_us
from gpuqueue.store import Store
from gpuqueue.worker.attempt import Attempt, Interruption, Judge
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.observations import Lessons
from gpuqueue.worker.output import Output

ABANDON_S = 2.0
UNKNOWN_TASK_WAIT_S = 30.0
logger = logging.getLogger("gpuqueue.worker")


class Ending(NamedTuple):
    """How an attempt ended: its outcome, what it returned, and the error behind it."""

    outcome: Outcome
    value: Any = None
    error: BaseException | None = None


class Attempts:
    """The running attempts of one worker, by job and lease."""

    def __init__(
        self,
        store: Store,
        executor_of: Callable[[Lease], Executor | AsyncExecutor | None],
        judge: Judge,
        output: Output,
        event_loop: EventLoop,
        lessons: Lessons,
        *,
        worker_id: str,
        now: Callable[[], datetime],
        log: WorkerLog,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._executor_of = executor_of
        self._judge = judge
        self._output = output
        self._event_loop = event_loop
        self._lessons = lessons
        self._worker_id = worker_id
        self._now = now
        self._log = log
        self._may_begin = may_begin
        self._running: dict[tuple[int, int], Attempt] = {}
        self._stopping: Interruption | None = None

    def run(self, lease: Lease, prepare: Callable[[Attempt], None] | None = None) -> Ending | None:
        """Run an attempt, in this thread or, while it waits, on the event loop; None when it was given up."""
        executor = self._executor_of(lease)
        if executor is None:
            return Ending(self._unknown_task(lease))
        attempt = self.begin(lease)
        value: Any = None
        error: BaseException | None = None
        try:
            attempt.check()
            if prepare is not None:
                prepare(attempt)
            if is_async(executor):
                value, error = self._event_loop.start(attempt, executor).result()
            else:
                with running(attempt):
                    value = cast(Executor, executor).run(attempt)
        except BaseException as raised:  # SystemExit and the like end the attempt, not the worker
            error = raised
        return self.end(attempt, value, error)

    def start(self, lease: Lease, on_end: Callable[[Attempt, Any, BaseException | None], None]) -> None:
        """Start an asynchronous task's attempt; `on_end` is called on the event loop, and hands over to `end`."""
        executor = self._executor_of(lease)
        assert executor is not None and is_async(executor)
        attempt = self.begin(lease)
        self._event_loop.start(attempt, executor).add_done_callback(lambda future: on_end(attempt, *future.result()))

    def begin(self, lease: Lease) -> Attempt:
        attempt = Attempt(lease, self._output)
        self._running[lease.job_id, lease.lease] = attempt
        if self._stopping is not None or not self._may_begin():
            attempt.interrupt(self._stopping or "stopping")
        self._log.attempt_started(lease)
        return attempt

    def end(self, attempt: Attempt, value: Any, error: BaseException | None) -> Ending | None:
        """Judge an attempt that returned or raised, and write what it said; None when it was given up."""
        outcome = self._judge.outcome(attempt, value, error)
        if not attempt.close():
            return None
        lease = attempt.lease
        self._running.pop((lease.job_id, lease.lease), None)
        self._output.flush(lease)
        run_s = time.monotonic() - attempt.began_s
        if isinstance(outcome, Completed) and lease.placement is None:
            self._lessons.of_run(lease, run_s)
        self._log.ended(outcome, run_s, value)
        return Ending(outcome, value, error)

    @property
    def any_running(self) -> bool:
        return bool(self._running)

    def stop_requested(self) -> None:
        """Interrupt the attempts that a person wants stopped, or that are to make room for another queue's job."""
        if not self._running:
            return
        with self._store.snapshot() as reads:
            wanted = reads.stop_requests(self._worker_id)
        for job_id, lease, cancelled in wanted:
            attempt = self._running.get((job_id, lease))
            if attempt is not None:
                attempt.interrupt("cancelled" if cancelled else "preempted")

    def stop_overdue(self) -> list[Lease]:
        """Interrupt the attempts past their deadline, and give up those that do not stop; returns the given up."""
        now_s = time.monotonic()
        given_up = []
        for attempt in list(self._running.values()):
            if attempt.deadline_s is not None and now_s >= attempt.deadline_s:
                attempt.interrupt("timed_out")
            if attempt.interruption is not None and now_s - attempt.interrupted_at_s >= ABANDON_S and self._give_up(attempt):
                given_up.append(attempt.lease)
        return given_up

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

    def _give_up(self, attempt: Attempt) -> bool:
        lease = attempt.lease
        outcome = self._judge.interrupted(attempt)
        # A thread that ends meanwhile waits for the write: it would free the device of a job that still counts as running.
        try:
            if not attempt.close(lambda: self._written(outcome)):
                return False
        except StoreError as error:
            logger.warning("%s; trying again", error)
            return False
        self._running.pop((lease.job_id, lease.lease), None)
        self._log.abandoned(lease, attempt.interruption or "")
        self._log.ended(outcome, time.monotonic() - attempt.began_s)
        return True

    def _written(self, outcome: Outcome) -> None:
        self._store.attempts.finish([outcome], now_us=to_us(self._now()))

    def _unknown_task(self, lease: Lease) -> Outcome:
        message = (
            f"worker {self._worker_id} does not know the task {lease.task!r}; "
            "start one with --app MODULE:QUEUE_OBJECT, whose module defines it or imports the one that does"
        )
        at = self._now() + timedelta(seconds=UNKNOWN_TASK_WAIT_S)
        outcome = Postponed(lease, "snoozed", to_us(at), spent=False, error=JobErrorRecord("unknown_task", message))
        self._log.ended(outcome, 0.0)
        return outcome
