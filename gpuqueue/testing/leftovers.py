"""Finds the threads and sockets that a tested part leaves behind; stops none itself."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpuqueue.testing.waiting import wait_until

__all__ = ["nothing_left_behind"]


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if, after the block, threads run or sockets are open that did not exist before it."""
    threads_before, sockets_before = set(threading.enumerate()), _open_sockets()
    yield

    def left() -> list[str]:
        gc.collect()
        threads = [f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads_before]
        return [*threads, *(f"{kind} {number}" for kind, number in _open_sockets() - sockets_before)]

    try:
        wait_until(lambda: not left())
    except AssertionError:
        pytest.fail(f"left behind: {', '.join(left())}")


def _open_sockets() -> set[tuple[str, str]]:
    """List this process's sockets and pipes, where the system reports them: {(kind, inode)}."""
    folder = "/proc/self/fd"
    found = set()
    for descriptor in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            kind, _, number = os.readlink(f"{folder}/{descriptor}").partition(":")
        except OSError:  # the one through which this folder is read
            continue
        if kind in ("socket", "pipe"):
            found.add((kind, number.strip("[]")))
    return found
