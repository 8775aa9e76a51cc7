"""How long a queue's jobs take in turn on a device: with what came between, but not while they could not start anyway."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.view import QueueView
from gpuqueue.testing.views import BATCH, REALTIME, view
from gpuqueue.testing.virtual import VirtualTime
from gpuqueue.worker.turns import Turns

PEOPLE, JOBS = REALTIME.name, BATCH.name
YIELDING = {JOBS: [Hold("yielding", "", plugin="yielding", ends_with_jobs=True)]}


class Card:
    """What a worker sees of two queues, and a time that passes as told."""

    def __init__(self) -> None:
        self.time = VirtualTime()
        self.turns = Turns(self.time.clock)

    def sees(self, *, people: int = 0, batch: int = 0, waiting: int = 0, holds=None) -> None:
        queues = (QueueView(REALTIME, running_count=people), QueueView(BATCH, running_count=batch, waiting_count=waiting))
        self.turns.saw(view(*queues), holds or {})

    def passes(self, seconds: float) -> None:
        self.time.run(self.time.now_s + seconds)

    def ends(self, queue: str) -> float | None:
        return self.turns.ended(queue, queue)[0]


@pytest.fixture
def card() -> Card:
    return Card()


def test_a_turn_lasts_from_the_end_of_the_job_before_to_its_own(card: Card) -> None:
    card.sees(batch=1, waiting=2)
    card.passes(30)
    assert card.ends(JOBS) == 30
    card.passes(2)
    card.sees(batch=1, waiting=1)
    card.passes(40)
    assert card.ends(JOBS) == 42


def test_the_jobs_that_come_first_lengthen_the_turn_they_interrupt(card: Card) -> None:
    card.sees(batch=1)
    card.passes(30)
    card.sees(people=1, waiting=1, holds=YIELDING)
    card.passes(5)
    assert card.ends(PEOPLE) == 5
    card.sees(batch=1)
    card.passes(30)
    assert card.ends(JOBS) == 65


def test_time_without_work_and_time_in_a_pause_are_in_no_turn(card: Card) -> None:
    card.sees()
    card.passes(1000)
    card.sees(waiting=1, holds={JOBS: [Hold("window", "")]})
    card.passes(1000)
    card.sees(batch=1)
    card.passes(30)
    assert card.ends(JOBS) == 30


def test_jobs_of_queues_with_equal_rights_share_the_time(card: Card) -> None:
    other = replace(BATCH, name="other")
    card.turns.saw(view(QueueView(REALTIME), QueueView(BATCH, running_count=1), QueueView(other, waiting_count=1)), {})
    card.passes(30)
    assert card.ends(JOBS) == 30
    card.passes(40)
    assert card.ends("other") == 40


def test_how_often_a_kind_of_work_ends_is_known_from_its_second_job_on(card: Card) -> None:
    card.sees(people=1)
    card.passes(5)
    assert card.turns.ended(PEOPLE, "revise") == (5, None)
    card.sees()
    card.passes(35)
    card.sees(people=1)
    card.passes(5)
    assert card.turns.ended(PEOPLE, "revise") == (5, 40)


def test_nothing_is_known_before_the_first_look_and_of_a_queue_that_is_gone(card: Card) -> None:
    assert card.ends(JOBS) is None
    card.sees()
    assert card.ends("gone") is None
