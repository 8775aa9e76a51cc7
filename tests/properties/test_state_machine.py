"""Whatever clients, workers, backends and time do, in whatever order: the queue does what is documented, and comes to rest."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.machine import Machine


def test_the_queue_does_what_is_documented_whatever_happens(tmp_path: Path) -> None:
    class Played(Machine):
        folder = tmp_path

    run_state_machine_as_test(
        Played,
        settings=settings(max_examples=60, stateful_step_count=60, deadline=None, derandomize=True, print_blob=True,
                          suppress_health_check=list(HealthCheck)),
    )
