"""Whatever clients, workers, backends and time do, in whatever order: the queue does what is documented, and comes to rest."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.machine import Machine

LONG = {"max_examples": 1500, "stateful_step_count": 100}


def play(folder: Path, *, seed_number: int | None = None, **chosen: Any) -> int:
    """Let the machine run; returns how many steps it made."""
    played: type[Machine] = type("Played", (Machine,), {"folder": folder})
    run_state_machine_as_test(
        played if seed_number is None else seed(seed_number)(played),
        settings=settings(
            deadline=None,
            database=None,  # a seed tells all
            derandomize=seed_number is None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            **chosen,
        ),
    )
    return played.step_count


def test_the_queue_does_what_is_documented_whatever_happens(tmp_path: Path) -> None:
    assert play(tmp_path, max_examples=60, stateful_step_count=60) > 2000


@pytest.mark.long
def test_the_queue_does_what_is_documented_for_long(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    given = request.config.getoption("--hypothesis-seed", None)
    number = int(given) if given is not None else random.SystemRandom().randrange(2**32)
    repeat = f"pytest -m long --hypothesis-seed={number}"
    with capsys.disabled():
        print(f"\nthe state machine runs long; repeat this run with: {repeat}")
    try:
        play(tmp_path, seed_number=number, **LONG)
    except BaseException as error:
        error.add_note(f"repeat with: {repeat}")
        raise
