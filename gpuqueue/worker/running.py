"""Runs an attempt's task, and gives its executor the attempt's context."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from gpuqueue.contract.current_job import LONGEST_LINE, running
from gpuqueue.contract.executor import AsyncExecutor, AttemptInterrupted, Executor
from gpuqueue.domain.job import Lease, PartialOutput
from gpuqueue.domain.safe_text import clean, safe_text
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.output import Output

LONGEST_NOTE = 1000  # characters of a progress note that are kept
MOST_TOKENS = 2**62
logger = logging.getLogger("gpuqueue.worker")
Interruption = Literal["cancelled", "timed_out", "preempted", "stopping", "lease_lost"]


class Ran(NamedTuple):
    """The result of a run: the value that it returned, or the error that it raised."""

    value: Any = None
    error: BaseException | None = None


class Attempt:
    """The AttemptContext that executors see; `interrupt` may come from any thread.

    `may_go_on` is false once its worker's lease may have ended, which a process that was suspended learns by asking. Only an
    attempt on a device asks: a lease fences the rows, not the card.
    """

    def __init__(self, lease: Lease, output: Output, clock: Clock, may_go_on: Callable[[], bool] = lambda: True) -> None:
        self.lease = lease
        self.partial: PartialOutput | None = None
        self.began_s = clock.monotonic()
        self.deadline_s = None if lease.timeout_s is None else self.began_s + lease.timeout_s
        self.interruption: Interruption | None = None
        self.interrupted_at_s = 0.0
        self._continued_tokens = 0
        self._closed = False
        self._output = output
        self._clock = clock
        self._may_go_on = may_go_on
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
            _call(stop)

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
        if self.lease.placement is not None and not self._may_go_on():
            self.interrupt("lease_lost")
        if self.interruption is not None:
            raise AttemptInterrupted(self.interruption)

    def emit(self, text: str) -> None:
        self.check()
        self._output.emit(self.lease, clean(text))

    def progress(self, fraction: float, note: str) -> None:
        self._output.progress(self.lease, fraction, safe_text(note, LONGEST_NOTE))

    def log(self, message: str) -> None:
        self._output.log(self.lease, self._clock.wall(), safe_text(message, LONGEST_LINE))

    def tokens(self, count: int) -> None:
        self._output.tokens(self.lease, min(max(int(count), 0) + self._continued_tokens, MOST_TOKENS))

    def continue_output(self) -> None:
        if self.partial is not None:
            self._continued_tokens = self.partial.output_tokens
            self._output.continue_from(self.lease, self.partial.lease)

    @contextmanager
    def interrupted_by(self, stop: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._stops.append(stop)
            already = self.interruption is not None
        if already:
            _call(stop)
        try:
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)


def _call(stop: Callable[[], None]) -> None:
    try:
        stop()
    except BaseException:  # of an executor: the other attempts must be stopped too
        logger.exception("an executor failed to stop its attempt; the attempt is given up if it keeps running")


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
