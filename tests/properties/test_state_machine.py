"""Whatever clients, workers, backends and time do, in whatever order: the queue does what is documented, and comes to rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.machine import Machine
from tests.sampling import seed_of

STEPS = 60
LONG_STEPS, LONG_EXAMPLES, PARTS = 100, 30, 40  # of each part


def play(folder: Path, seed_number: int, **chosen: Any) -> int:
    """Let the machine run; returns how many steps it made."""
    played: type[Machine] = type("Played", (Machine,), {"folder": folder})
    run_state_machine_as_test(
        seed(seed_number)(played),
        settings=settings(
            deadline=None,
            database=None,  # a seed tells all
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            **chosen,
        ),
    )
    return played.step_count


def test_the_queue_does_what_is_documented_whatever_happens(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    assert play(tmp_path, seed_of(request.config), max_examples=30, stateful_step_count=STEPS) > 1000


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_the_queue_does_what_is_documented_for_long(tmp_path: Path, request: pytest.FixtureRequest, part: int) -> None:
    play(tmp_path, seed_of(request.config) + 1 + part, max_examples=LONG_EXAMPLES, stateful_step_count=LONG_STEPS)
