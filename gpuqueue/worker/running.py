"""Runs an attempt's task, and gives its executor the attempt's context."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from gpuqueue.contract.current_job import running
from gpuqueue.contract.executor import AsyncExecutor, AttemptInterrupted, Executor
from gpuqueue.domain.job import Lease, PartialOutput
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.output import Output

Interruption = Literal["cancelled", "timed_out", "preempted", "stopping", "lease_lost"]


class Ran(NamedTuple):
    """The result of a run: the value that it returned, or the error that it raised."""

    value: Any = None
    error: BaseException | None = None


class Attempt:
    """The AttemptContext that executors see; `interrupt` may come from any thread."""

    def __init__(self, lease: Lease, output: Output, clock: Clock) -> None:
        self.lease = lease
        self.partial: PartialOutput | None = None
        self.began_s = clock.monotonic()
        self.deadline_s = None if lease.timeout_s is None else self.began_s + lease.timeout_s
        self.interruption: Interruption | None = None
        self.interrupted_at_s = 0.0
        self._closed = False
        self._output = output
        self._clock = clock
        self._stops: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def interrupt(self, why: Interruption) -> None:
        """Ask the attempt to stop; the first reason counts."""
        with self._lock:
            if self.interruption is not None:
                return
            self.interruption = why
            self.interrupted_at_s = self._clock.monotonic()
            stops = list(self._stops)
        for stop in stops:
            stop()

    def close(self, write: Callable[[], None] | None = None) -> bool:
        """Take the right to write the outcome, and write it; only the first caller gets True, the others wait for the write."""
        with self._lock:
            if self._closed:
                return False
            if write is not None:
                write()
            self._closed = True
            return True

    def check(self) -> None:
        # A task that checks may pass its deadline before the worker notices.
        if self.deadline_s is not None and self._clock.monotonic() >= self.deadline_s:
            self.interrupt("timed_out")
        if self.interruption is not None:
            raise AttemptInterrupted(self.interruption)

    def emit(self, text: str) -> None:
        self.check()
        self._output.emit(self.lease, text)

    def progress(self, fraction: float, note: str) -> None:
        self._output.progress(self.lease, fraction, note)

    def log(self, message: str) -> None:
        self._output.log(self.lease, self._clock.wall(), message)

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


# --- the run ---


def run_here(attempt: Attempt, executor: Executor) -> Ran:
    """Run an attempt in this thread."""
    try:
        with running(attempt):
            return Ran(executor.run(attempt))
    except BaseException as raised:
        return Ran(error=raised)


async def run_on_loop(attempt: Attempt, executor: AsyncExecutor) -> Ran:
    """Run an attempt as a task of the event loop; an interruption cancels it."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None

    def cancel() -> None:
        loop.call_soon_threadsafe(task.cancel)

    try:
        with running(attempt), attempt.interrupted_by(cancel):
            attempt.check()
            return Ran(await executor.arun(attempt))
    except BaseException as raised:
        return Ran(error=raised)
