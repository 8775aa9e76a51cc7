"""Owns one attempt while it runs, and the judgement of how it ended; writes nothing to the store itself."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.contract.hookspecs import AttemptFailedDetails
from gpuqueue.contract.plugin_set import PluginFailed, Plugins
from gpuqueue.domain.endpoints import of_queue
from gpuqueue.domain.errors import AttemptTimedOut, ExecutionError, PayloadError
from gpuqueue.domain.job import JobErrorRecord, Lease, PartialOutput, State
from gpuqueue.domain.json_text import to_json
from gpuqueue.domain.outcomes import Completed, Ended, Outcome, Postponed
from gpuqueue.domain.settings import BackendSettings, ModelSettings, QueueSettings
from gpuqueue.domain.units import format_duration, to_us
from gpuqueue.domain.verdicts import Discard, Retry, RetryRules, Snooze, Verdict, failure
from gpuqueue.worker.output import Output

Interruption = Literal["cancelled", "timed_out", "preempted", "stopping", "lease_lost"]
FAILED_HOOK_WAIT_S = 60.0
logger = logging.getLogger("gpuqueue.worker")


class Attempt:
    """One attempt while it runs; the AttemptContext that executors see. `interrupt` may come from any thread."""

    def __init__(self, lease: Lease, output: Output) -> None:
        self.lease = lease
        self.partial: PartialOutput | None = None
        self.began_s = time.monotonic()
        self.deadline_s = None if lease.timeout_s is None else self.began_s + lease.timeout_s
        self.interruption: Interruption | None = None
        self.interrupted_at_s = 0.0
        self._closed = False
        self._output = output
        self._stops: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def interrupt(self, why: Interruption) -> None:
        """Ask the attempt to stop; the first reason counts."""
        with self._lock:
            if self.interruption is not None:
                return
            self.interruption = why
            self.interrupted_at_s = time.monotonic()
            stops = list(self._stops)
        for stop in stops:
            stop()

    def close(self, write: Callable[[], None] = lambda: None) -> bool:
        """Take the right to write the outcome, and write it; only the first who asks gets True, the others after the write."""
        with self._lock:
            if self._closed:
                return False
            write()
            self._closed = True
            return True

    def check(self) -> None:
        # Whoever looks at the deadline itself may come before the worker's own look.
        if self.deadline_s is not None and time.monotonic() >= self.deadline_s:
            self.interrupt("timed_out")
        if self.interruption is not None:
            raise AttemptInterrupted(self.interruption)

    def emit(self, text: str) -> None:
        self.check()
        self._output.emit(self.lease, text)

    def progress(self, fraction: float, note: str) -> None:
        self._output.progress(self.lease, fraction, note)

    def log(self, message: str) -> None:
        self._output.log(self.lease, time.time_ns() // 1000, message)

    def tokens(self, count: int) -> None:
        self._output.tokens(self.lease, count)

    def continue_output(self) -> None:
        if self.partial is not None:
            self._output.continue_from(self.lease, self.partial.lease)

    @contextmanager
    def interrupted_by(self, stop: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._stops.append(stop)
            already = self.interruption is not None
        if already:
            stop()
        try:
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)


class Judge:
    """Turns what an attempt returned or raised into its outcome, asking the policies about failures."""

    def __init__(
        self,
        plugins: Plugins,
        *,
        settings_of: Callable[[str], QueueSettings],
        backend_of: Callable[[Lease], BackendSettings | None],
        rules_of: Callable[[str], RetryRules],
        models: Mapping[str, ModelSettings],
        backends: Sequence[BackendSettings],
        now: Callable[[], datetime],
        max_payload_bytes: int,
    ) -> None:
        self._plugins = plugins
        self._settings_of = settings_of
        self._backend_of = backend_of
        self._rules_of = rules_of
        self._models = models
        self._backends = backends
        self._now = now
        self._max_payload_bytes = max_payload_bytes

    def outcome(self, attempt: Attempt, value: Any, error: BaseException | None) -> Outcome:
        """The outcome of an attempt that returned `value`, or raised `error`."""
        if error is None:
            return self._completed(attempt.lease, value)
        if isinstance(error, AttemptInterrupted):
            return self.interrupted(attempt)
        if isinstance(error, asyncio.CancelledError) and attempt.interruption is not None:
            return self.interrupted(attempt)
        return self._failed(attempt.lease, error)

    def interrupted(self, attempt: Attempt) -> Outcome:
        """The outcome of an attempt that was asked to stop."""
        lease = attempt.lease
        if attempt.interruption == "cancelled":
            return Ended(lease, State.CANCELLED, JobErrorRecord("cancelled", "cancelled while it ran"))
        if attempt.interruption == "timed_out":
            return self._failed(lease, AttemptTimedOut(f"ran longer than its timeout of {format_duration(lease.timeout_s or 0)}"))
        outcome = "preempted" if attempt.interruption == "preempted" else "released"
        return Postponed(lease, outcome, to_us(self._now()), spent=False)

    def _completed(self, lease: Lease, value: Any) -> Outcome:
        if value is None:
            return Completed(lease, "null")
        try:
            return Completed(lease, to_json(value, limit_bytes=self._max_payload_bytes, what=f"the result of job {lease.job_id}"))
        except PayloadError as error:
            # Trying again would only compute the same result.
            return Ended(lease, State.DISCARDED, JobErrorRecord("result", str(error)))

    def _failed(self, lease: Lease, error: BaseException) -> Outcome:
        """The outcome of a failed attempt: as the task says, or else as the policies decide."""
        code, message = failure(error)
        record = JobErrorRecord(code, message, _trace(error))
        verdict = _decided(error, lease)
        if verdict is None:
            try:
                verdict = self._asked(lease, error)
            except PluginFailed as failed:
                logger.exception("job %d: %s", lease.job_id, failed)
                verdict = Snooze(FAILED_HOOK_WAIT_S)
                record = JobErrorRecord("plugin_failed", f"{failed} (while deciding about: {message})", record.traceback)
        now = self._now()
        if isinstance(verdict, Retry):
            return Postponed(lease, "retried", to_us(verdict.due_at(now) or now), spent=True, error=record)
        if isinstance(verdict, Snooze):
            if isinstance(error, Snooze):
                record = JobErrorRecord("snoozed", message)
            due_us = to_us(verdict.due_at(now))
            return Postponed(lease, "snoozed", due_us, spent=False, error=record, waiting_for=verdict.waiting_for)
        if isinstance(verdict, Discard):
            record = JobErrorRecord(verdict.code, verdict.reason or message, record.traceback)
        return Ended(lease, State.DISCARDED, record)

    def _asked(self, lease: Lease, error: BaseException) -> Verdict | None:
        details = AttemptFailedDetails(
            lease,
            self._settings_of(lease.queue),
            error,
            self._now(),
            self._backend_of(lease),
            self._rules_of(lease.task),
            self._models,
            of_queue(self._settings_of(lease.queue).backend, self._backends),
        )
        answer: Verdict | None = self._plugins.first("attempt_failed", details)
        return answer


def _decided(error: BaseException, lease: Lease) -> Verdict | None:
    """The verdict that a task raised, where it leaves nothing for the policies to decide."""
    if isinstance(error, Snooze | Discard):
        return error
    if isinstance(error, Retry) and error.due_at(lease.started_at) is not None and lease.attempt < lease.max_attempts:
        return error
    return None


def _trace(error: BaseException) -> str:
    """The traceback worth keeping: none for what was raised to say something, the far one of another process."""
    if isinstance(error, ExecutionError | Verdict):
        return str(getattr(error, "remote_traceback", ""))
    return "".join(traceback.format_exception(error))
