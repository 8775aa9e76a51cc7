"""Reads a file into the page cache, a little at a time and after everybody else."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

CHUNK_BYTES = 8 * 2**20  # in flight at once
STEP_BYTES = 128 * 2**10  # Linux reads no more ahead at one request, unless the disk is set so
_SET_IO_PRIORITY = {"x86_64": 251, "aarch64": 30}  # the number of ioprio_set, for which there is no function
_THIS_THREAD, _IDLE = 1, 3 << 13

is_supported = hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")


def read_ahead(path: Path, *, may_hold: Callable[[int], bool]) -> Iterator[int]:
    """Read the file into the page cache; yields the size of each chunk. What is already there is not read again.

    Ends early when `may_hold(the file's size)` turns false, or when the file's first page has left the cache again: memory is
    shorter than it seems, as with a control group's limit. Raises: OSError.
    """
    with open(path, "rb", buffering=0) as file:
        number = file.fileno()
        size = os.fstat(number).st_size
        for start in range(0, size, CHUNK_BYTES):
            if not may_hold(size) or (start and not _is_cached(number)):
                return
            end = min(start + CHUNK_BYTES, size)
            for at in range(start, end, STEP_BYTES):
                os.posix_fadvise(number, at, min(STEP_BYTES, end - at), os.POSIX_FADV_WILLNEED)  # neither waits nor copies
            os.pread(number, 1, end - 1)  # waits
            yield end - start


def give_way() -> None:
    """Let this thread read only while nobody else does, where the system's I/O scheduler can do that."""
    number = _SET_IO_PRIORITY.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _THIS_THREAD, 0, _IDLE)


def _is_cached(number: int) -> bool:
    """Whether the file's first page is in the page cache; true where the file system cannot tell."""
    # mincore tells only the file's owner.
    try:
        os.preadv(number, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return True
