"""Owns the contract of an executor: run one attempt, return its result or raise; it never writes to the store itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeGuard

from gpuqueue.domain.job import Lease, PartialOutput


class AttemptInterrupted(BaseException):
    """Raised inside an attempt that must stop; not an Exception, so that a task's `except Exception` lets it through."""


class AttemptContext(Protocol):
    """What a running attempt may ask and do.

    `deadline_s` is on the clock of `time.monotonic()`, None without one. `interruption` is None until the attempt must
    stop, then "cancelled", "timed_out", "preempted" (it makes room for a job that comes first), "stopping" (the worker shuts
    down) or "lease_lost".
    """

    @property
    def lease(self) -> Lease: ...

    @property
    def deadline_s(self) -> float | None: ...

    @property
    def interruption(self) -> str | None: ...

    def check(self) -> None:
        """Return quietly, or raise AttemptInterrupted when the attempt must stop."""

    def emit(self, text: str) -> None:
        """Append to the job's output; readers see it within 100 ms. Raises: AttemptInterrupted."""

    def progress(self, fraction: float, note: str) -> None:
        """Say how far the job is, from 0 to 1; the latest counts."""

    def log(self, message: str) -> None:
        """Append a line to the job's log."""

    def tokens(self, count: int) -> None:
        """Say how many tokens a model has written in this attempt so far; the latest counts."""

    @property
    def partial(self) -> PartialOutput | None:
        """What an earlier attempt had written when it was interrupted through no fault of its own; None else."""

    def continue_output(self) -> None:
        """Let this attempt's output go on where `partial` ended, instead of beginning anew."""

    def interrupted_by(self, stop: Callable[[], None]) -> AbstractContextManager[None]:
        """While the block runs, an interruption calls `stop` once, from another thread; at once if it came already."""


class Executor(Protocol):
    """Runs one attempt in the calling thread.

    An executor with an attribute `preemptible` that is true can be asked to make room: it loses nothing but time.

    Returns: a JSON value. Raises: AttemptInterrupted when it stopped because it was asked to; an ExecutionError that
    classes the failure, or anything else as the task's own failure.
    """

    def run(self, context: AttemptContext) -> Any: ...


class AsyncExecutor(Protocol):
    """Runs one attempt on the worker's event loop; an interruption cancels it. Returns and raises as an Executor."""

    async def arun(self, context: AttemptContext) -> Any: ...


AnyExecutor = Executor | AsyncExecutor


def is_async(executor: Executor | AsyncExecutor) -> TypeGuard[AsyncExecutor]:
    return hasattr(executor, "arun")
