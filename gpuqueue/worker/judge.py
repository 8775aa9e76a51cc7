"""Turns the value or error of an attempt into its outcome; the policies decide about failures. Never raises.

What the task's code decided stands. An error in judging itself ends the attempt with the code "internal": spent, and tried
again while attempts are left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from gpuqueue.client.tasks import Task
from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.contract.hookspecs import AttemptFailedDetails
from gpuqueue.domain.endpoints import of_queue
from gpuqueue.domain.errors import AttemptTimedOut, ExecutionError, PayloadError, ProcessDied, describe
from gpuqueue.domain.job import JobErrorRecord, Lease, State
from gpuqueue.domain.json_text import to_json
from gpuqueue.domain.outcomes import Completed, Crashed, Ended, Outcome, Postponed, crash_of
from gpuqueue.domain.safe_text import LONGEST_TRACE, safe_text, safe_trace
from gpuqueue.domain.units import format_duration, to_us
from gpuqueue.domain.verdicts import (
    DEFAULT_BACKOFF,
    DEFAULT_RULES,
    LONGEST_CODE,
    Discard,
    Retry,
    RetryRules,
    Snooze,
    Verdict,
    failure,
)
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.running import Attempt
from gpuqueue.worker.site import Site

UNKNOWN_TASK_WAIT_S = 30.0
logger = logging.getLogger("gpuqueue.worker")


class Judge:
    """`tasks` have their own rules for failures."""

    def __init__(
        self, site: Site, backends: Backends, *, tasks: Mapping[str, Task[..., Any]], max_payload_bytes: int, max_crashes: int
    ) -> None:
        self._site = site
        self._clock = site.clock
        self._backends = backends
        self._tasks = tasks
        self._max_payload_bytes = max_payload_bytes
        self._max_crashes = max_crashes

    def outcome(self, attempt: Attempt, value: Any, error: BaseException | None) -> Outcome:
        """Return the outcome of an attempt that returned `value`, or raised `error`."""
        try:
            return self._completed(attempt.lease, value) if error is None else self._not_completed(attempt, error)
        except BaseException as failed:  # errors of tasks and plugins may have parts that raise anything
            return self.internal(attempt.lease, failed, error)

    def interrupted(self, attempt: Attempt) -> Outcome:
        """Return the outcome of an attempt that was asked to stop."""
        try:
            return self._interrupted(attempt)
        except BaseException as failed:
            return self.internal(attempt.lease, failed)

    def internal(self, lease: Lease, failed: BaseException, error: BaseException | None = None) -> Outcome:
        """Return the outcome of an attempt that gpuqueue or a plugin failed to handle; `error` is what the task raised."""
        message = f"the attempt could not be handled: {describe(failed)}"
        if error is not None:
            message += f" (while handling: {failure(error)[1]})"
        record = JobErrorRecord("internal", safe_text(message), safe_trace(failed))
        logger.error("job %d: %s\n%s", lease.job_id, record.message, record.traceback)
        if lease.attempt >= lease.max_attempts:
            return Ended(lease, State.DISCARDED, record)
        return Postponed(lease, "retried", self._clock.wall() + int(self._wait_s(lease) * 1e6), error=record)

    def _wait_s(self, lease: Lease) -> float:
        """Return how long the task's backoff waits after this attempt; the default one's wait if it fails."""
        try:
            return self._rules(lease).backoff.wait_s(lease.attempt, chance=0.0)
        except BaseException:  # it may be the error that is being handled
            return DEFAULT_BACKOFF.wait_s(lease.attempt, chance=0.0)

    def _rules(self, lease: Lease) -> RetryRules:
        task = self._tasks.get(lease.task)
        return DEFAULT_RULES if task is None else task.rules

    def unknown_task(self, lease: Lease) -> Outcome:
        """Return the outcome of an attempt of a task that this worker does not know."""
        message = (
            f"worker {self._site.worker_id} does not know the task {lease.task!r}; "
            "start a worker with --app MODULE:QUEUE_OBJECT, where MODULE defines or imports the task"
        )
        at = self._clock.now() + timedelta(seconds=UNKNOWN_TASK_WAIT_S)
        return Postponed(lease, "snoozed", to_us(at), error=JobErrorRecord("unknown_task", message))

    def _not_completed(self, attempt: Attempt, error: BaseException) -> Outcome:
        if isinstance(error, AttemptInterrupted):
            return self._interrupted(attempt, safe_text(error))
        if isinstance(error, asyncio.CancelledError) and attempt.interruption is not None:
            return self._interrupted(attempt)
        if isinstance(error, ProcessDied) and attempt.lease.crashes is not None:
            crash = crash_of(attempt.lease.crashes + 1, safe_text(error), max_crashes=self._max_crashes)
            return Crashed(attempt.lease, *crash)
        return self._failed(attempt.lease, error)

    def _interrupted(self, attempt: Attempt, why: str = "") -> Outcome:
        """Return the outcome of an attempt that was asked to stop; `why` it stopped if it was not asked."""
        lease = attempt.lease
        if attempt.interruption == "cancelled":
            return Ended(lease, State.CANCELLED, JobErrorRecord("cancelled", "cancelled while running"))
        if attempt.interruption == "timed_out":
            return self._failed(lease, AttemptTimedOut(f"ran longer than its timeout of {format_duration(lease.timeout_s or 0)}"))
        record = JobErrorRecord("interrupted", why) if why and attempt.interruption is None else None
        outcome: Literal["preempted", "released"] = "preempted" if attempt.interruption == "preempted" else "released"
        return Postponed(lease, outcome, self._clock.wall(), error=record)

    def _completed(self, lease: Lease, value: Any) -> Outcome:
        if value is None:
            return Completed(lease, "null")
        what = f"the result of job {lease.job_id}"
        try:
            return Completed(lease, to_json(value, limit_bytes=self._max_payload_bytes, what=what))
        except BaseException as error:  # a class derived from dict or list may raise anything
            # Another attempt would compute the same result.
            message = safe_text(error) if isinstance(error, PayloadError) else f"{what} cannot be encoded: {describe(error)}"
            return Ended(lease, State.DISCARDED, JobErrorRecord("result", message))

    def _failed(self, lease: Lease, error: BaseException) -> Outcome:
        """Return the outcome of a failed attempt: as the task decides, or else as the policies decide."""
        code, message = failure(error)
        trace = _trace(error)
        verdict = _decided(error, lease) or self._asked(lease, error)
        now = self._clock.now()
        if isinstance(verdict, Retry):
            if verdict is not error and verdict.reason:
                message = f"{message} ({safe_text(verdict.reason)})"
            due_us = to_us(verdict.due_at(now) or now)
            return Postponed(lease, "retried", due_us, error=JobErrorRecord(code, message, trace))
        if isinstance(verdict, Snooze):
            record = JobErrorRecord("snoozed", message) if isinstance(error, Snooze) else JobErrorRecord(code, message, trace)
            waiting_for = None if verdict.waiting_for is None else safe_text(verdict.waiting_for)
            return Postponed(lease, "snoozed", to_us(verdict.due_at(now)), error=record, waiting_for=waiting_for)
        if isinstance(verdict, Discard):
            code, message = safe_text(verdict.code, LONGEST_CODE), safe_text(verdict.reason) or message
        return Ended(lease, State.DISCARDED, JobErrorRecord(code, message, trace))

    def _asked(self, lease: Lease, error: BaseException) -> Verdict | None:
        site = self._site
        details = AttemptFailedDetails(
            lease,
            site.queue(lease.queue),
            error,
            self._clock.now(),
            self._backends.of(lease),
            self._rules(lease),
            site.settings.models,
            tuple(of_queue(site.queue(lease.queue).backend, site.settings.backends)),
        )
        answer: Verdict | None = site.plugins.first("attempt_failed", details)
        return answer


def _decided(error: BaseException, lease: Lease) -> Verdict | None:
    """Return the verdict that a task raised, None when the policies must decide."""
    if isinstance(error, Snooze | Discard):
        return error
    if isinstance(error, Retry) and error.due_at(lease.started_at) is not None and lease.attempt < lease.max_attempts:
        return error
    return None


def _trace(error: BaseException) -> str:
    """Return the traceback worth keeping: none for a verdict or a classified failure, else the remote or local one."""
    if isinstance(error, ExecutionError | Verdict):
        return safe_text(getattr(error, "remote_traceback", ""), LONGEST_TRACE)
    return safe_trace(error)
