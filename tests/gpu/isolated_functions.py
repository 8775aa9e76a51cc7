"""Owns functions that the tests on a card run in processes of their own; a child imports this module by its name."""

from __future__ import annotations

import os
import signal

from tests.executors.isolated_functions import tell
from tests.gpu.cuda import Cuda, NoCard, take


def cards_seen() -> list[str]:
    """Return the UUIDs of the cards that CUDA shows here."""
    try:
        return Cuda().uuids()
    except NoCard:
        return []


def take_and_return(size_bytes: int, how: str = "driver") -> str:
    take(size_bytes, how)
    return "taken"


def take_and_never_return(file: str, size_bytes: int, how: str = "driver") -> None:
    """Take memory, say so in a file, and be deaf to every request to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = take(size_bytes, how)
    tell(file, os.getpid())
    while held is not None:
        signal.pause()
