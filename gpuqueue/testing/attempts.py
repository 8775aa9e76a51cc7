"""Provides an attempt to test executors without a worker; it records all that the executor reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

from gpuqueue.contract.executor import AsyncExecutor, Executor, is_async
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.job import Lease
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.output import Output
from gpuqueue.worker.running import Attempt, Ran, run_here

__all__ = ["Bench", "RecordedAttempt"]


def _now_us() -> int:
    return time.time_ns() // 1000


Ended = Ran  # what an executor returned, or what it raised


class _Record:
    """Takes the place of a worker's output, and keeps it."""

    def __init__(self) -> None:
        self.emitted: list[str] = []
        self.logged: list[str] = []
        self.progressed: list[tuple[float, str]] = []
        self.token_counts: list[int] = []
        self.continued = False

    def tokens(self, _lease: Lease, count: int) -> None:
        self.token_counts.append(count)

    def continue_from(self, _lease: Lease, _output_lease: int) -> None:
        self.continued = True

    def emit(self, _lease: Lease, text: str) -> None:
        self.emitted.append(text)

    def log(self, _lease: Lease, _at_us: int, message: str) -> None:
        self.logged.append(message)

    def progress(self, _lease: Lease, fraction: float, note: str) -> None:
        self.progressed.append((fraction, note))


class RecordedAttempt(Attempt):
    """The context of one attempt, to pass to an executor's `run` or `arun`; it is the worker's own, with another output.

    `interrupt("cancelled")`, or "timed_out", "preempted", "stopping", "lease_lost", asks the attempt to stop, from any thread.
    `emitted`, `logged`, `progressed` and `token_counts` are what it has reported; `begun` is set as soon as it checks or reports
    anything. `partial` is the output of an earlier attempt; `continued` says whether this one continues it.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        task: str = "task",
        queue: str = "default",
        attempt: int = 1,
        max_attempts: int = 3,
        timeout_s: float | None = None,
        model: str = "",
        placement: Placement | None = None,
    ) -> None:
        self._record = _Record()
        self.begun = threading.Event()
        lease = Lease(
            job_id=1,
            lease=attempt,
            queue=queue,
            task=task,
            attempt=attempt,
            max_attempts=max_attempts,
            arguments=arguments,
            timeout_s=timeout_s,
            started_at=datetime.now(UTC),
            model=model,
            placement=placement,
        )
        super().__init__(lease, cast(Output, self._record), Clock(wall=_now_us))

    @property
    def emitted(self) -> list[str]:
        return self._record.emitted

    @property
    def token_counts(self) -> list[int]:
        return self._record.token_counts

    @property
    def continued(self) -> bool:
        return self._record.continued

    @property
    def logged(self) -> list[str]:
        return self._record.logged

    @property
    def progressed(self) -> list[tuple[float, str]]:
        return self._record.progressed

    def check(self) -> None:
        self.begun.set()
        super().check()

    def progress(self, fraction: float, note: str) -> None:
        super().progress(fraction, note)
        self.begun.set()

    def log(self, message: str) -> None:
        super().log(message)
        self.begun.set()

    @contextmanager
    def interrupted_by(self, stop: Callable[[], None]) -> Iterator[None]:
        with super().interrupted_by(stop):
            self.begun.set()
            yield


class Bench:
    """Runs attempts as a worker does: plain ones in a thread each, async ones together on one event loop."""

    def __init__(self) -> None:
        self._event_loop = EventLoop(Clock(wall=_now_us))

    def start(self, executor: Executor | AsyncExecutor, attempt: Attempt) -> Future[Ended]:
        """Start an attempt; the future's result is (what it returned, None) or (None, what it raised)."""
        if is_async(executor):
            return self._event_loop.start(attempt, executor)
        plain = cast(Executor, executor)
        future: Future[Ended] = Future()

        def run() -> None:
            future.set_result(run_here(attempt, plain))

        threading.Thread(target=run, name="gpuqueue-bench", daemon=True).start()
        return future

    def close(self) -> None:
        """Close the event loop, cancelling what still runs on it."""
        self._event_loop.close(wait_s=5.0)
