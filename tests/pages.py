"""Owns how tests and benchmarks look at the page cache: which part of a file is in it, and how to get a file out of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def evict(path: Path) -> None:
    """Take a file out of the page cache; a file system in memory keeps it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached(path: Path) -> float:
    """Return the share of a file's pages that are in the page cache; the file must be this user's."""
    size = path.stat().st_size
    count = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * count)()
    with open(path, "rb") as file:
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    failed = LIBC.mincore(address, size, found)
    LIBC.munmap(address, size)
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(item & 1 for item in found) / count
