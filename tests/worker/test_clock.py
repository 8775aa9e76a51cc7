"""A worker reads time from its clock alone, so that a whole worker can run in a time that a test makes up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import gpuqueue.worker
from gpuqueue.worker.clock import Clock

FOLDER = Path(gpuqueue.worker.__file__).parent
FILES = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "clock.py")


def clock_reads(text: str) -> Iterator[str]:
    """What a file does that reads a clock other than a `Clock`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(alias.name == "time" for alias in node.names):
            yield "import time"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield "from time import"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            if node.func.attr in ("now_us", "utcnow", "today") or (node.func.attr == "now" and not called.endswith("clock.now")):
                yield called


@pytest.mark.parametrize("name", FILES)
def test_no_other_file_of_the_worker_reads_a_clock(name: str) -> None:
    assert list(clock_reads((FOLDER / name).read_text())) == []


def test_the_check_sees_every_way_to_read_one() -> None:
    text = (
        "import time\nfrom time import monotonic\n"
        "datetime.now(UTC)\ndatetime.datetime.utcnow()\ndate.today()\ngq.now()\ngq.now_us()\n"
        "self._clock.now()\nsite.clock.now()\nsite.clock.wall()\nClock(wall=gq.now_us)\n"
    )
    reads = ["import time", "from time import", "datetime.now", "datetime.datetime.utcnow", "date.today", "gq.now", "gq.now_us"]
    assert sorted(clock_reads(text)) == sorted(reads)


def test_a_clock_says_the_same_time_in_microseconds_and_as_a_datetime() -> None:
    moment = datetime(2026, 3, 2, 12, 0, 0, 250_000, UTC)
    clock = Clock(wall=lambda: 1_772_452_800_250_000)
    assert clock.now() == moment
    assert clock.now().tzinfo is UTC
