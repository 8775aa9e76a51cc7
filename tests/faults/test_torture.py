"""Workers and producers are killed, frozen and interrupted, fork, and have clocks that step: nothing is lost or repeated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.torture.check import check
from tests.faults.torture.torturer import Torturer
from tests.sampling import seed_of

SHORT_S = 20.0
LONG_S, PARTS = 600.0, 5  # one test may not take as long
pytestmark = pytest.mark.skipif(not hasattr(os, "waitid"), reason="this system does not say whether a process has stopped")


def play(folder: Path, seed: int, for_s: float) -> None:
    torturer = Torturer(folder, seed, workers=3, producers=2)
    try:
        torturer.torture(for_s)
        torturer.drain()
        check(torturer)
    finally:
        torturer.close()


def test_a_short_torture_loses_nothing_and_repeats_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    play(tmp_path, seed_of(request.config), SHORT_S)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_ten_minutes_of_torture_lose_nothing_and_repeat_nothing(
    tmp_path: Path, request: pytest.FixtureRequest, part: int
) -> None:
    play(tmp_path, seed_of(request.config) + part, LONG_S / PARTS)
