"""Signals: whatever a handler raises or does in the middle of an enqueue or a read, the queue stays usable and exact."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import LONGEST_S
from tests.sampling import seed_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs timers that send signals")
HITS = 60
HANDLERS = ["exception", "base exception", "enqueue", "read"]


def storm(path: Path, seed: int, hits: int, kind: str) -> None:
    command = [sys.executable, "-m", "tests.store.storm", str(path / "jobs.db"), str(seed), str(hits), kind]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert ran.returncode == 0, f"seed {seed}: {ran.stdout}{ran.stderr}"


@pytest.mark.parametrize("kind", HANDLERS)
def test_signals_in_the_middle_of_everything_leave_the_queue_usable_and_exact(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    storm(tmp_path, seed_of(request.config), HITS, kind)


@pytest.mark.long
@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("kind", HANDLERS)
def test_thousands_of_signals_leave_the_queue_usable_and_exact(
    tmp_path: Path, kind: str, turn: int, request: pytest.FixtureRequest
) -> None:
    storm(tmp_path, random.Random(f"{seed_of(request.config)} {turn}").randrange(2**32), 1000, kind)
