"""Lets a task read and report on the job that runs it; all writes go through the attempt's context.

from gpuqueue import current_job

current_job().progress(0.4, note="chapter 2 of 5")
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta

from gpuqueue.contract.executor import AttemptContext
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.safe_text import safe_repr, safe_text

LONGEST_LINE = 10_000  # characters of a log line that are kept
logger = logging.getLogger("gpuqueue.job")


class CurrentJob:
    """The job that runs the calling task, in its thread, coroutine or process."""

    def __init__(self, context: AttemptContext) -> None:
        self._context = context

    @property
    def id(self) -> int:
        return self._context.lease.job_id

    @property
    def queue(self) -> str:
        return self._context.lease.queue

    @property
    def task(self) -> str:
        return self._context.lease.task

    @property
    def attempt(self) -> int:
        """The number of this attempt, 1 for the first."""
        return self._context.lease.attempt

    @property
    def max_attempts(self) -> int:
        return self._context.lease.max_attempts

    @property
    def deadline(self) -> datetime | None:
        """When the attempt's timeout ends it, aware and in UTC; None without one."""
        deadline_s = self._context.deadline_s
        return None if deadline_s is None else datetime.now(UTC) + timedelta(seconds=deadline_s - time.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether the attempt must stop: cancelled, past its deadline, or the worker is shutting down. Check it in long loops."""
        return self._context.interruption is not None

    def check(self) -> None:
        """End the attempt here if it must stop; the exception passes through `except Exception`."""
        self._context.check()

    def progress(self, fraction: float, *, note: str = "") -> None:
        """Report the job's progress, from 0 to 1; readers see the latest within 100 ms. Raises: UsageError."""
        if not (isinstance(fraction, int | float) and 0 <= fraction <= 1):
            raise UsageError(f"progress must be a number from 0 to 1, not {safe_repr(fraction)}")
        self._context.progress(float(fraction), safe_text(note))

    def log(self, message: object) -> None:
        """Add a line to the job's log, which `gpuqueue logs` and `job.logs()` read; it also goes to Python's logging."""
        text = safe_text(message, LONGEST_LINE)
        self._context.log(text)
        logger.info("job %d: %s", self.id, text)

    def emit(self, chunk: str) -> None:
        """Add text to the job's output, which `job.stream()` reads within 100 ms. Ends the attempt if it must stop."""
        self._context.emit(str(chunk))

    def __repr__(self) -> str:
        return f"<current job {self.id}, attempt {self.attempt} of {self.max_attempts}>"


class Alone:
    """The context of a task that is called as a plain function: nothing interrupts it, and its reports go only to the log."""

    deadline_s = None
    interruption = None
    partial = None

    def __init__(self, task: str) -> None:
        self.lease = Lease(0, 0, "", task, 1, 1, {}, None, datetime.now(UTC))

    def check(self) -> None: ...

    def emit(self, text: str) -> None: ...

    def progress(self, fraction: float, note: str) -> None: ...

    def log(self, message: str) -> None: ...

    def tokens(self, count: int) -> None: ...

    def continue_output(self) -> None: ...

    def interrupted_by(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()


_context: ContextVar[AttemptContext] = ContextVar("gpuqueue_attempt")


def current_job() -> CurrentJob:
    """Return the job that runs the calling task. Raises: UsageError outside a task."""
    try:
        return CurrentJob(_context.get())
    except LookupError:
        raise UsageError(
            "current_job() works only inside a task: no job runs here. In a thread that the task starts, run the function "
            "in a copy of its context: contextvars.copy_context().run"
        ) from None


def current_lease() -> Lease | None:
    """Return the lease of the job that runs the calling task, None outside a task."""
    context = _context.get(None)
    return None if context is None or not context.lease.job_id else context.lease


class _ThisThread(threading.local):
    note: Callable[[int, int], None] | None = None


_this_thread = _ThisThread()


def publish_waits(note: Callable[[int, int], None]) -> None:
    """Have `note` called when a task in this thread waits for a job: with its own job and the other, 0 when it goes on."""
    _this_thread.note = note


def published_waits() -> Callable[[int, int], None] | None:
    """Return what `publish_waits` set in this thread, None in one that is not a worker's."""
    return _this_thread.note


class running:
    """Makes a context's job the current one inside the block."""

    __slots__ = ("_attempt", "_token")

    def __init__(self, context: AttemptContext) -> None:
        self._attempt = context

    def __enter__(self) -> None:
        self._token = _context.set(self._attempt)

    def __exit__(self, *_: object) -> None:
        _context.reset(self._token)
