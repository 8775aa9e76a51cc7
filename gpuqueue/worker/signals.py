"""Lets SIGTERM and SIGINT stop a worker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def stopped_by_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT call `request_stop`; only in the main thread, as no other can handle signals.

    The third signal goes to the handler before: a worker that hangs in code of a plugin could be ended by nothing else.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) <= 2:
            request_stop()
            return
        signal.signal(number, before[number] or signal.SIG_DFL)
        signal.raise_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
