"""A time that jumps from one event to the next, and threads that take turns on it: an hour of work passes in a second."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from gpuqueue.domain.units import to_us
from gpuqueue.worker.clock import Clock

START = datetime(2026, 1, 5, 18, tzinfo=UTC)  # a Monday evening: nothing is paused for the working day


class Closed(BaseException):
    """The time has ended; raised in each thread that waits on it."""


class VirtualTime:
    """Seconds since `start`, which pass only while every thread waits; of its threads one runs at a time.

    A thread of it must wait by `sleep` or by a `Signal`, and must hold no lock meanwhile that another needs.
    """

    def __init__(self, start: datetime = START) -> None:
        self.now_s = 0.0
        self._start_us = to_us(start)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._idle = _closed_lock()  # released by the thread that runs when it waits or ends
        self._waiting: set[_Turn] = set()
        self._turn = threading.local()
        self._error: BaseException | None = None
        self._closed = False
        self.clock = Clock(wall=self.wall, monotonic=lambda: self.now_s)

    def wall(self) -> int:
        """Return the time in microseconds since 1970-01-01 UTC."""
        return self._start_us + round(self.now_s * 1e6)

    def call_at(self, at_s: float, call: Callable[[], None]) -> None:
        """Call a function when that time comes; calls of the same time in the order in which they were asked for."""
        heapq.heappush(self._events, (max(at_s, self.now_s), next(self._numbers), call))

    def spawn(self, work: Callable[[], object]) -> None:
        """Start a thread; what it raises is raised by `run`."""
        turn = _Turn()

        def run() -> None:
            turn.given.acquire()
            self._turn.own = turn
            try:
                if not self._closed:
                    work()
            except Closed:
                pass
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._waiting.discard(turn)
                self._idle.release()

        self._waiting.add(turn)
        threading.Thread(target=run, name="virtual", daemon=True).start()
        self.call_at(self.now_s, lambda: self._give(turn))

    def sleep(self, duration_s: float) -> None:
        """Let time pass, in a thread of it."""
        turn = self._turn.own
        self.call_at(self.now_s + max(duration_s, 0.0), lambda: self._give(turn))
        self._wait(turn)

    def run(self, until_s: float = math.inf) -> None:
        """Let time pass until nothing is left to happen, or until `until_s`. Raises: what a thread of it raised."""
        while self._events and self._events[0][0] <= until_s:
            at_s, _, call = heapq.heappop(self._events)
            self.now_s = at_s
            call()
            if self._error is not None:
                raise self._error
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)

    def close(self) -> None:
        """End every thread that still waits."""
        self._closed = True
        while self._waiting:
            self._give(next(iter(self._waiting)))

    def _give(self, turn: _Turn) -> None:
        """Let a thread run until it waits again or ends."""
        turn.given.release()
        self._idle.acquire()

    def _wait(self, turn: _Turn) -> None:
        self._waiting.add(turn)
        self._idle.release()
        turn.given.acquire()
        self._waiting.discard(turn)
        if self._closed:
            raise Closed


def _closed_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class _Turn:
    """When a thread may run."""

    def __init__(self) -> None:
        self.given = _closed_lock()


class Signal:
    """A flag that threads of a `VirtualTime` wait for, as `threading.Event`."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._set = False
        self._waiting: list[Callable[[], None]] = []

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def clear(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def then(self, call: Callable[[], None]) -> None:
        """Call a function when it is set, at once if it is."""
        if self._set:
            call()
        else:
            self._waiting.append(call)

    def wait(self, timeout_s: float = math.inf) -> bool:
        """Wait until it is set, `timeout_s` at most; returns whether it is."""
        time = self._time
        if not self._set and timeout_s > 0:
            turn, woken = time._turn.own, False

            def wake() -> None:
                nonlocal woken
                if not woken:
                    woken = True
                    time.call_at(time.now_s, lambda: time._give(turn))

            def give_up() -> None:
                nonlocal woken
                if not woken:
                    woken = True
                    time._give(turn)

            self._waiting.append(wake)
            if timeout_s < math.inf:
                time.call_at(time.now_s + timeout_s, give_up)
            time._wait(turn)
            if wake in self._waiting:
                self._waiting.remove(wake)
        return self._set
