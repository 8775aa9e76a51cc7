"""Whether web threads that enqueue in their transactions are served soon, on the file that a busy worker writes too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).parents[2]
WORST_S = 1.0


def served(folder: Path, *, threads: int, think_s: float, length_s: float) -> dict[str, Any]:
    """Play the web threads beside a worker in a process of its own."""
    words = [sys.executable, "-m", "tests.benchmarks.django_web", folder, threads, think_s, length_s, "web"]
    ran = subprocess.run(list(map(str, words)), cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    p50_ms, p99_ms, worst_ms = (found[name] * 1e3 for name in ("p50_s", "p99_s", "worst_s"))
    print(
        f"\n{threads} web threads, {think_s:g} s in between, {length_s:g} s: {found['calls']:,} calls, p50 {p50_ms:.0f}, "
        f"p99 {p99_ms:.0f}, worst {worst_ms:.0f} ms; {found['rolled_back']} rolled back; the worker completed "
        f"{found['completed']:,} jobs"
    )
    assert found["errors"] == {}
    assert (found["kept"], found["ghosts"]) == (found["found"], 0)
    assert found["orders"] == found["kept"]
    assert found["rolled_back"] > 0
    return found


def test_fifty_web_threads_that_think_are_served_within_a_second(tmp_path: Path) -> None:
    found = served(tmp_path, threads=50, think_s=0.2, length_s=30)
    assert found["worst_s"] < WORST_S


def test_eight_web_threads_that_never_rest_meet_no_error(tmp_path: Path) -> None:
    served(tmp_path, threads=8, think_s=0, length_s=15)
