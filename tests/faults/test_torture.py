"""Workers and producers are killed, frozen and interrupted, fork, and have clocks that step: nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.torture.check import check
from tests.faults.torture.torturer import Torturer
from tests.sampling import seed_of

LONG_S = 600.0
SHORT_S = 20.0


def play(folder: Path, seed: int, for_s: float) -> None:
    torturer = Torturer(folder, seed, workers=3, producers=2)
    try:
        torturer.torture(for_s)
        torturer.drain()
        check(torturer)
    finally:
        torturer.close()


def test_twenty_seconds_of_torture(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    play(tmp_path, seed_of(request.config), SHORT_S)


@pytest.mark.long
def test_ten_minutes_of_torture(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    play(tmp_path, seed_of(request.config), float(os.environ.get("TT", LONG_S)))
