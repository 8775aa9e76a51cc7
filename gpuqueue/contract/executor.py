"""Defines the contract of an executor: it runs one attempt, and returns its result or raises; it never writes to the store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeGuard

from gpuqueue.domain.job import Lease, PartialOutput


class AttemptInterrupted(BaseException):
    """Raised inside an attempt that must stop; not an Exception, so a task's `except Exception` lets it through."""


class AttemptContext(Protocol):
    """A running attempt's view of itself, and its reports.

    `deadline_s` is on the clock of `time.monotonic()`, None without one. `interruption` is None until the attempt must
    stop, then "cancelled", "timed_out", "preempted" (for another job or a pause), "stopping" (the worker is shutting down)
    or "lease_lost".
    """

    @property
    def lease(self) -> Lease: ...

    @property
    def deadline_s(self) -> float | None: ...

    @property
    def interruption(self) -> str | None: ...

    def check(self) -> None:
        """Raise AttemptInterrupted if the attempt must stop."""

    def emit(self, text: str) -> None:
        """Append to the job's output; readers see it within 100 ms. Raises: AttemptInterrupted."""

    def progress(self, fraction: float, note: str) -> None:
        """Report the job's progress, from 0 to 1; the latest value counts."""

    def log(self, message: str) -> None:
        """Append a line to the job's log."""

    def tokens(self, count: int) -> None:
        """Report how many tokens a model has generated in this attempt so far; the latest value counts."""

    @property
    def partial(self) -> PartialOutput | None:
        """The output of an earlier attempt that was interrupted through no fault of its own; else None."""

    def continue_output(self) -> None:
        """Continue the output where `partial` ended, instead of starting again; its tokens then count with this attempt's."""

    def interrupted_by(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, an interruption calls `stop` once, from another thread; immediately if it already arrived."""


class Executor(Protocol):
    """Runs one attempt in the calling thread.

    An executor with a true attribute `preemptible` can be preempted: it loses only time. One with a method
    `continues(arguments, model)` says of which jobs the next attempt continues the output: those are preempted as often as others
    need the device, and other jobs only while little work is thrown away by that.

    Returns: a JSON value. Raises: AttemptInterrupted if it stopped because it was asked to; an ExecutionError that classifies
    the failure; any other exception counts as the task's own failure.
    """

    def run(self, context: AttemptContext) -> Any: ...


class AsyncExecutor(Protocol):
    """Runs one attempt on the worker's event loop; an interruption cancels it. Returns and raises as an Executor."""

    async def arun(self, context: AttemptContext) -> Any: ...


AnyExecutor = Executor | AsyncExecutor


def is_async(executor: Executor | AsyncExecutor) -> TypeGuard[AsyncExecutor]:
    return hasattr(executor, "arun")
