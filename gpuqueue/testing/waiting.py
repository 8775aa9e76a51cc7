"""Waits in tests until a condition is true, with a limit that only a broken test reaches; changes no clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["DEADLINE_S", "wait_until"]

DEADLINE_S = 120.0  # far beyond what a busy machine needs: only a broken test waits so long
Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], what: str = "", timeout_s: float = DEADLINE_S) -> Found:
    """Check the condition until it is true and return what it returned.

    Raises: AssertionError naming `what` if that takes longer than `timeout_s`.
    """
    give_up_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < give_up_s, f"timed out waiting for{f': {what}' if what else ' the condition'}"
        pause.wait(0.01)
    return found
