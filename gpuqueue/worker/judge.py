"""Turns the value or error of an attempt into its outcome; the policies decide about failures."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from gpuqueue.client.tasks import Task
from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.contract.hookspecs import AttemptFailedDetails
from gpuqueue.domain.endpoints import of_queue
from gpuqueue.domain.errors import AttemptTimedOut, ExecutionError, PayloadError, PluginFailed
from gpuqueue.domain.job import JobErrorRecord, Lease, State
from gpuqueue.domain.json_text import to_json
from gpuqueue.domain.outcomes import Completed, Ended, Outcome, Postponed
from gpuqueue.domain.units import format_duration, to_us
from gpuqueue.domain.verdicts import DEFAULT_RULES, Discard, Retry, Snooze, Verdict, failure
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.running import Attempt
from gpuqueue.worker.site import Site

FAILED_HOOK_WAIT_S = 60.0
UNKNOWN_TASK_WAIT_S = 30.0
logger = logging.getLogger("gpuqueue.worker")


class Judge:
    """`tasks` have their own rules for failures."""

    def __init__(self, site: Site, backends: Backends, *, tasks: Mapping[str, Task[..., Any]], max_payload_bytes: int) -> None:
        self._site = site
        self._clock = site.clock
        self._backends = backends
        self._tasks = tasks
        self._max_payload_bytes = max_payload_bytes

    def outcome(self, attempt: Attempt, value: Any, error: BaseException | None) -> Outcome:
        """Return the outcome of an attempt that returned `value`, or raised `error`."""
        if error is None:
            return self._completed(attempt.lease, value)
        if isinstance(error, AttemptInterrupted):
            return self.interrupted(attempt)
        if isinstance(error, asyncio.CancelledError) and attempt.interruption is not None:
            return self.interrupted(attempt)
        return self._failed(attempt.lease, error)

    def interrupted(self, attempt: Attempt) -> Outcome:
        """Return the outcome of an attempt that was asked to stop."""
        lease = attempt.lease
        if attempt.interruption == "cancelled":
            return Ended(lease, State.CANCELLED, JobErrorRecord("cancelled", "cancelled while running"))
        if attempt.interruption == "timed_out":
            return self._failed(lease, AttemptTimedOut(f"ran longer than its timeout of {format_duration(lease.timeout_s or 0)}"))
        return Postponed(lease, "preempted" if attempt.interruption == "preempted" else "released", self._clock.wall())

    def unknown_task(self, lease: Lease) -> Outcome:
        """Return the outcome of an attempt of a task that this worker does not know."""
        message = (
            f"worker {self._site.worker_id} does not know the task {lease.task!r}; "
            "start a worker with --app MODULE:QUEUE_OBJECT, where MODULE defines or imports the task"
        )
        at = self._clock.now() + timedelta(seconds=UNKNOWN_TASK_WAIT_S)
        return Postponed(lease, "snoozed", to_us(at), error=JobErrorRecord("unknown_task", message))

    def _completed(self, lease: Lease, value: Any) -> Outcome:
        if value is None:
            return Completed(lease, "null")
        try:
            return Completed(lease, to_json(value, limit_bytes=self._max_payload_bytes, what=f"the result of job {lease.job_id}"))
        except PayloadError as error:
            # Another attempt would compute the same result.
            return Ended(lease, State.DISCARDED, JobErrorRecord("result", str(error)))

    def _failed(self, lease: Lease, error: BaseException) -> Outcome:
        """Return the outcome of a failed attempt: as the task decides, or else as the policies decide."""
        code, message = failure(error)
        record = JobErrorRecord(code, message, _trace(error))
        verdict = _decided(error, lease)
        if verdict is None:
            try:
                verdict = self._asked(lease, error)
            except PluginFailed as failed:
                logger.exception("job %d: %s", lease.job_id, failed)
                verdict = Snooze(FAILED_HOOK_WAIT_S)
                record = JobErrorRecord("plugin_failed", f"{failed} (while handling: {message})", record.traceback)
        now = self._clock.now()
        if isinstance(verdict, Retry):
            return Postponed(lease, "retried", to_us(verdict.due_at(now) or now), error=record)
        if isinstance(verdict, Snooze):
            if isinstance(error, Snooze):
                record = JobErrorRecord("snoozed", message)
            due_us = to_us(verdict.due_at(now))
            return Postponed(lease, "snoozed", due_us, error=record, waiting_for=verdict.waiting_for)
        if isinstance(verdict, Discard):
            record = JobErrorRecord(verdict.code, verdict.reason or message, record.traceback)
        return Ended(lease, State.DISCARDED, record)

    def _asked(self, lease: Lease, error: BaseException) -> Verdict | None:
        site, task = self._site, self._tasks.get(lease.task)
        details = AttemptFailedDetails(
            lease,
            site.queue(lease.queue),
            error,
            self._clock.now(),
            self._backends.of(lease),
            DEFAULT_RULES if task is None else task.rules,
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
        return str(getattr(error, "remote_traceback", ""))
    return "".join(traceback.format_exception(error))
