"""Jobs start within the ranges that they were shown, on a card in virtual time."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.benchmarks.scheduling.expected import Asking, score
from tests.benchmarks.scheduling.hours import BATCH, GEMMA, Arrival, Hour, backlog
from tests.benchmarks.scheduling.play import SCHEMES, SHIPPED, play


def test_most_jobs_start_within_the_range_that_they_are_shown() -> None:
    def draw(drawn: random.Random) -> Iterator[Arrival]:
        yield from backlog(drawn, GEMMA)

    asking = Asking()
    hour = Hour("backlog", "a backlog of an hour", draw, {BATCH: {}})
    play(hour, SCHEMES[SHIPPED], seed=1, prompt_cache=True, observer=asking)
    found = score([asking.answers])
    assert found.starts == len(asking.answers.queues) > 40
    assert found.inside > 0.65
    assert found.below > 0.05
    assert found.unknown < 0.15, "nothing is known until the first job has ended"
    assert found.narrow > 0.4
