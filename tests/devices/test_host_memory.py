"""The host's memory as the kernel shows it: what is available, and which programs use most of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpuqueue.devices import host_memory
from tests.processes import started

has_proc = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system has no /proc to look into")
HELD = 50_000_000


@has_proc
def test_what_is_available_and_what_holds_files_is_less_than_all() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < (host_memory.available_bytes() or 0) < total
    assert 0 < (host_memory.page_cache_bytes() or 0) < total


@has_proc
def test_the_memory_of_all_processes_of_a_program_is_counted_together() -> None:
    hold = f"open('/proc/self/comm', 'w').write('holds'); held = b'x' * {HELD}; print(flush=True); input()"
    command = [sys.executable, "-c", hold]
    with (
        started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one,
        started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        for process in (one, other):
            assert process.stdout is not None
            process.stdout.readline()
        used = dict(host_memory.largest_users(1000))
    assert 2 * HELD < used["holds"] < 4 * HELD
    assert list(used.values()) == sorted(used.values(), reverse=True)


def test_nothing_is_known_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "PROC", tmp_path / "nowhere")
    assert (host_memory.available_bytes(), host_memory.page_cache_bytes(), host_memory.largest_users(3)) == (None, None, [])
