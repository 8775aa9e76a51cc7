"""Reading a file ahead: every page of it is in the page cache afterwards, and none where memory is short."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from pathlib import Path

import pytest

from gpuqueue.worker.page_cache import CHUNK_BYTES, give_way, is_supported, read_ahead
from tests.pages import cached, evict

pytestmark = pytest.mark.skipif(not is_supported, reason="this system gives no advice about its page cache")
GET_IO_PRIORITY = {"x86_64": 252, "aarch64": 31}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three chunks and a piece, on the disk only."""
    path = tmp_path / "model"
    path.write_bytes(os.urandom(3 * CHUNK_BYTES + 5000))
    evict(path)
    if cached(path):
        pytest.skip("this file system keeps its files in memory")
    return path


def test_every_page_is_in_the_cache_afterwards(file: Path) -> None:
    assert sum(read_ahead(file, may_hold=lambda size: size == file.stat().st_size)) == file.stat().st_size
    assert cached(file) == 1


def test_nothing_is_read_where_memory_is_short(file: Path) -> None:
    assert list(read_ahead(file, may_hold=lambda _: False)) == []
    assert cached(file) == 0


def test_reading_ends_where_memory_becomes_short(file: Path) -> None:
    answers = iter([True, False])
    assert list(read_ahead(file, may_hold=lambda _: next(answers))) == [CHUNK_BYTES]
    assert cached(file) < 0.7  # the disk may read some ahead


def test_a_file_that_does_not_stay_is_not_read_to_its_end(file: Path) -> None:
    chunks = read_ahead(file, may_hold=lambda _: True)
    next(chunks)
    evict(file)
    assert list(chunks) == []


@pytest.mark.skipif(platform.machine() not in GET_IO_PRIORITY, reason="the number of the system call is not known here")
@pytest.mark.skipif(sys.platform != "linux", reason="no I/O priorities")
def test_a_thread_that_gives_way_reads_only_while_nobody_else_does() -> None:
    found: list[int] = []

    def look() -> None:
        give_way()
        found.append(ctypes.CDLL(None).syscall(GET_IO_PRIORITY[platform.machine()], 1, 0))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert [priority >> 13 for priority in found] == [3], "the idle class"
    assert ctypes.CDLL(None).syscall(GET_IO_PRIORITY[platform.machine()], 1, 0) >> 13 != 3, "of that thread only"
