"""Runs a worker's asynchronous tasks on one event loop, and warns about the line of a task that blocks it."""

from __future__ import annotations

import asyncio
import linecache
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import NoReturn

from gpuqueue.contract.current_job import current_lease
from gpuqueue.contract.executor import AsyncExecutor
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.safe_text import class_name, safe_trace
from gpuqueue.domain.view import PartInfo
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.running import Attempt, Ran, run_on_loop
from gpuqueue.worker.service_thread import part_info

BLOCKED_S = 0.5  # an event loop that does not answer for this long is reported
WATCH_EVERY_S = 0.25
logger = logging.getLogger("gpuqueue.worker")


class EventLoop:
    """One asyncio event loop in its own thread, started at its first use.

    While attempts run on it, a second thread checks that it responds; if not, it logs a warning with the job and the line.
    """

    def __init__(self, clock: Clock, *, blocked_s: float = BLOCKED_S) -> None:
        self._clock = clock
        self._blocked_s = blocked_s
        self._blocked_since_s: float | None = None
        self._last_s = clock.monotonic()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._count = 0  # attempts on the loop
        self._has_work = threading.Event()
        self._closed = threading.Event()
        self._stop: Callable[[], None] = lambda: None

    def start(self, attempt: Attempt, executor: AsyncExecutor) -> Future[Ran]:
        """Start an attempt; the future's result is a `Ran`, and it never raises."""
        with self._lock:
            loop = self._loop if self._thread is not None and self._thread.is_alive() else None
            loop = loop or self._open()
            self._count += 1
            self._has_work.set()
        future = asyncio.run_coroutine_threadsafe(run_on_loop(attempt, executor), loop)
        future.add_done_callback(self._one_less)
        return future

    def info(self) -> PartInfo:
        """Describe the loop as a part of its worker: since when a task has blocked it, and when it last answered."""
        alive = self._thread is None or self._thread.is_alive()
        return part_info("event loop", self._clock, alive=alive, since_s=self._blocked_since_s, last_s=self._last_s)

    def close(self, *, wait_s: float) -> None:
        """Stop the loop; attempts still running on it are cancelled, and left running after `wait_s`."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._closed.set()
            self._has_work.set()
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(self._stop)
            thread.join(wait_s)

    def _open(self) -> asyncio.AbstractEventLoop:
        loop = self._loop = asyncio.new_event_loop()
        self._stop = loop.stop
        loop.stop = partial(_refuse, "stop")  # type: ignore[method-assign]
        loop.shutdown_default_executor = partial(_refuse, "shutdown_default_executor")  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._work, args=(loop,), name="gpuqueue-event-loop", daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch, args=(loop, self._thread), name="gpuqueue-loop-watch", daemon=True).start()
        return loop

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            while True:
                try:
                    if self._closed.is_set():
                        break
                    loop.run_forever()
                except BaseException as error:  # SystemExit passes from a task's own tasks and callbacks through the loop
                    logger.error(
                        "an asynchronous task raised %s through the event loop; the other jobs on it go on\n%s",
                        class_name(error),
                        safe_trace(error),
                    )
            loop.stop = self._stop  # type: ignore[method-assign] # `run_until_complete` calls it
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.wait(left, timeout=1.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def _one_less(self, _future: Future[Ran]) -> None:
        with self._lock:
            self._count -= 1
            if not self._count and not self._closed.is_set():
                self._has_work.clear()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        while True:
            self._has_work.wait()
            if self._closed.wait(WATCH_EVERY_S):
                return
            alive = threading.Event()
            asked_s = self._clock.monotonic()
            try:
                loop.call_soon_threadsafe(alive.set)
            except RuntimeError:  # closed meanwhile
                return
            if not alive.wait(self._blocked_s):
                self._blocked_since_s = asked_s
                frame = sys._current_frames().get(thread.ident or 0)
                if frame is not None:
                    logger.warning("%s", blocking_line(frame, self._blocked_s))
                while not alive.wait(WATCH_EVERY_S):  # warn once per block
                    if self._closed.is_set():
                        return
            self._blocked_since_s, self._last_s = None, self._clock.monotonic()


def _refuse(method: str) -> NoReturn:
    """Stand in for a method of the loop that would end it, or what it runs on: all asynchronous jobs of the worker share it."""
    lease = current_lease()
    who = "an asynchronous task" if lease is None else f"job {lease.job_id} ({lease.task})"
    raise UsageError(f"{who} called {method}() on the worker's event loop, which other jobs share; return from the task instead")


def blocking_line(frame: FrameType, blocked_s: float) -> str:
    """Word what blocks the loop: the job, the line of the task, and the line where that is stuck."""
    stack: list[FrameType] = []  # the innermost first
    attempt: Attempt | None = None
    at: FrameType | None = frame
    while at is not None:
        if at.f_code is run_on_loop.__code__:
            attempt = at.f_locals.get("attempt")
            break
        stack.append(at)
        at = at.f_back
    own = [item for item in stack if not item.f_code.co_filename.startswith(_NOT_THE_TASKS)] or stack
    who = "an asynchronous task" if attempt is None else f"job {attempt.lease.job_id} ({attempt.lease.task})"
    stuck = "" if own[0] is own[-1] else f", stuck in {_place(own[0])}"
    return (
        f"{who} has blocked the event loop, and every other asynchronous job, for more than {blocked_s:g} s: "
        f"{_place(own[-1])}{stuck}. Await a call that does not block, use asyncio.to_thread, or make the task a plain function"
    )


def _place(frame: FrameType) -> str:
    file = frame.f_code.co_filename
    return f"{file}:{frame.f_lineno}: {linecache.getline(file, frame.f_lineno).strip()}".removesuffix(": ")


_NOT_THE_TASKS = ("<", os.path.dirname(threading.__file__), os.path.dirname(os.path.dirname(__file__)))
