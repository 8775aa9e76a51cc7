"""Owns one attempt: prepare, run, and turn what happened into an outcome; writes nothing to the store itself."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Literal

from gpuqueue.domain import BackendSettings, Discard, JobErrorRecord, Lease, QueueSettings, Retry, Snooze, State
from gpuqueue.errors import AttemptTimedOut, ExecutionError, PayloadError
from gpuqueue.executors import AttemptInterrupted, Executor
from gpuqueue.hookspecs import AttemptFailedDetails
from gpuqueue.plugin_manager import PluginFailed, Plugins
from gpuqueue.store.outcomes import Completed, Ended, Outcome, Postponed
from gpuqueue.store.rows import to_json
from gpuqueue.units import format_duration, to_us

Interruption = Literal["cancelled", "timed_out", "stopping", "lease_lost"]
FAILED_HOOK_WAIT_S = 60.0
logger = logging.getLogger("gpuqueue.worker")


class Attempt:
    """One attempt while it runs; the AttemptContext that executors see. `interrupt` may come from any thread."""

    def __init__(self, lease: Lease, *, emit: Callable[[Lease, str], None]) -> None:
        self.lease = lease
        self.deadline_s = None if lease.timeout_s is None else time.monotonic() + lease.timeout_s
        self.interruption: Interruption | None = None
        self.interrupted_at_s = 0.0
        self._closed = False
        self._emit = emit
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
        if self.interruption is not None:
            raise AttemptInterrupted(self.interruption)

    def emit(self, text: str) -> None:
        self.check()
        self._emit(self.lease, text)

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
        backend_of: Callable[[str], BackendSettings | None],
        now: Callable[[], datetime],
        max_payload_bytes: int,
    ) -> None:
        self._plugins = plugins
        self._settings_of = settings_of
        self._backend_of = backend_of
        self._now = now
        self._max_payload_bytes = max_payload_bytes

    def run(
        self, attempt: Attempt, executor: Executor, prepare: Callable[[], None] | None = None
    ) -> tuple[Outcome, BaseException | None]:
        """Run the attempt to its end; returns the outcome, and the error behind it."""
        lease = attempt.lease
        try:
            if prepare is not None:
                prepare()
            value = executor.run(attempt)
            text = (
                "null"
                if value is None
                else to_json(value, limit_bytes=self._max_payload_bytes, what=f"the result of job {lease.job_id}")
            )
            return Completed(lease, text), None
        except AttemptInterrupted as error:
            return self.interrupted(attempt), error
        except PayloadError as error:
            # Trying again would only compute the same result.
            return Ended(lease, State.DISCARDED, JobErrorRecord("result", str(error))), error
        except Exception as error:
            return self.failed(lease, error), error
        except BaseException as error:  # SystemExit and the like end the attempt, not the worker
            return self.failed(lease, error), error

    def interrupted(self, attempt: Attempt) -> Outcome:
        """The outcome of an attempt that was asked to stop."""
        lease = attempt.lease
        if attempt.interruption == "cancelled":
            return Ended(lease, State.CANCELLED, JobErrorRecord("cancelled", "cancelled while it ran"))
        if attempt.interruption == "timed_out":
            return self.failed(lease, AttemptTimedOut(f"ran longer than its timeout of {format_duration(lease.timeout_s or 0)}"))
        return Postponed(lease, "released", to_us(self._now()), spent=False)

    def failed(self, lease: Lease, error: BaseException) -> Outcome:
        """The outcome of a failed attempt, as the policies decide; a policy that fails postpones the job."""
        trace = "" if isinstance(error, ExecutionError) else "".join(traceback.format_exception(error))
        code = error.code if isinstance(error, ExecutionError) else "failed"
        message = str(error) if isinstance(error, ExecutionError) else f"{type(error).__name__}: {error}"
        record = JobErrorRecord(code, message, trace)
        queue = self._settings_of(lease.queue)
        details = AttemptFailedDetails(lease, queue, error, self._now(), self._backend_of(lease.queue))
        try:
            verdict = self._plugins.first("attempt_failed", details)
        except PluginFailed as failure:
            logger.exception("job %d: %s", lease.job_id, failure)
            verdict = Snooze(self._now() + timedelta(seconds=FAILED_HOOK_WAIT_S))
            record = JobErrorRecord("plugin_failed", f"{failure} (while deciding about: {message})", trace)
        if isinstance(verdict, Retry):
            return Postponed(lease, "retried", to_us(verdict.at), spent=True, error=record)
        if isinstance(verdict, Snooze):
            return Postponed(lease, "snoozed", to_us(verdict.until), spent=False, error=record, waiting_for=verdict.waiting_for)
        if isinstance(verdict, Discard):
            record = JobErrorRecord(verdict.code, verdict.message, trace or message)
        return Ended(lease, State.DISCARDED, record)
