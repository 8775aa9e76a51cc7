"""Runs one part of a worker in a thread that is started again when an error ends it; one that fails too often ends the worker."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable

from gpuqueue.domain.errors import WorkerFailed, describe
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.domain.view import PartInfo
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.orders import Orders

AGAIN_S = 0.5
SHOWN_CALLS = 8  # of a thread that is stuck, the innermost ones
MOST_FAILURES, WITHIN_S = 5, 60.0
logger = logging.getLogger("gpuqueue.worker")


class Pulse:
    """When a part of a worker last did something, and since when it has been at it: a part that hangs is seen.

    `with pulse:` marks that the part does something inside the block, and does not wait for work.
    """

    __slots__ = ("_clock", "_last_s", "_monotonic", "_since_s", "_thread_id", "_told_since_s", "name")

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._monotonic = clock.monotonic
        self._since_s: float | None = None
        self._told_since_s: float | None = None
        self._thread_id = 0
        self._last_s = clock.monotonic()

    def __enter__(self) -> None:
        self._thread_id = threading.get_ident()
        self._since_s = self._monotonic()

    def __exit__(self, *_: object) -> None:
        self._last_s = self._monotonic()
        self._since_s = None

    def info(self, *, alive: bool = True) -> PartInfo:
        """Describe the part as it is now."""
        return part_info(self.name, self._clock, alive=alive, since_s=self._since_s, last_s=self._last_s)

    def tell_if_stuck(self) -> None:
        """Log where the part stands if it hangs, once each time."""
        since_s, trouble = self._since_s, self.info().trouble
        frame = sys._current_frames().get(self._thread_id)
        if trouble and since_s != self._told_since_s and frame is not None:
            self._told_since_s = since_s
            calls = "".join(traceback.format_stack(frame)[-SHOWN_CALLS:])
            logger.error("this worker cannot do its work: %s, in\n%s", trouble, calls.rstrip())


def part_info(name: str, clock: Clock, *, alive: bool, since_s: float | None, last_s: float) -> PartInfo:
    """Describe a part that has been busy since, and last did something at, these times of the monotonic clock."""
    now_s = clock.monotonic()
    last_at_us = clock.wall() - round((now_s - last_s) * 1e6)
    return PartInfo(name, alive, None if since_s is None else now_s - since_s, last_at_us)


class ServiceThread:
    """`work` runs in a thread until it returns; `pulse` is for what it does there."""

    def __init__(self, name: str, work: Callable[[], None], clock: Clock, orders: Orders) -> None:
        self.pulse = Pulse(name, clock)
        self._work = work
        self._clock = clock
        self._orders = orders
        self._failed_at_s: deque[float] = deque(maxlen=MOST_FAILURES)
        self._thread = threading.Thread(target=self._run, name=f"gpuqueue-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended, if it was ever started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def info(self) -> PartInfo:
        """Describe the part as it is now."""
        return self.pulse.info(alive=self.is_alive)

    def _run(self) -> None:
        while True:
            try:
                self._work()
                return
            except BaseException as error:  # whatever it was, the other parts and jobs go on
                if not self._may_run_again(error):
                    return
            self._orders.stop.wait(AGAIN_S)

    def _may_run_again(self, error: BaseException) -> bool:
        name, now_s = self.pulse.name, self._clock.monotonic()
        self._failed_at_s.append(now_s)
        if len(self._failed_at_s) == MOST_FAILURES and now_s - self._failed_at_s[0] < WITHIN_S:
            why = f"the worker's {name} thread failed {MOST_FAILURES} times within a minute: {describe(error)}"
            self._orders.fail(WorkerFailed(f"{why}. Its jobs go back to their queues; start the worker again"))
            return False
        logger.error("the worker's %s thread failed and is started again: %s\n%s", name, describe(error), safe_trace(error))
        return True
