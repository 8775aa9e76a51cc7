"""The programs of tests end with their block: when it fails, and when a program says nothing for ever."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpuqueue.testing.waiting import DEADLINE_S
from tests.processes import read_until, started

WITH_A_CHILD = """
import signal, subprocess
subprocess.Popen(["sleep", "1000"], close_fds=False)
print("ready", flush=True)
signal.pause()
"""
SILENT = [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's two ends, for a program to inherit the second."""
    ends = os.pipe()
    yield ends
    os.close(ends[0])


def test_a_block_that_fails_leaves_neither_the_program_nor_what_it_started(pipe: tuple[int, int]) -> None:
    told, kept_open = pipe
    with (
        pytest.raises(ZeroDivisionError),
        started([sys.executable, "-c", WITH_A_CHILD], stdout=subprocess.PIPE, pass_fds=[kept_open]) as process,
    ):
        os.close(kept_open)
        read_until(process.stdout, "ready")
        raise ZeroDivisionError
    assert process.returncode == -signal.SIGKILL
    ended, _, _ = select.select([told], [], [], DEADLINE_S)
    assert ended and os.read(told, 1) == b"", "nobody has the pipe open any more"


def test_a_program_that_says_nothing_is_not_read_for_ever() -> None:
    with started(SILENT, stdout=subprocess.PIPE, longest_s=0.1) as process:
        with pytest.raises(AssertionError, match="it ended without"):
            read_until(process.stdout, "ready")
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
