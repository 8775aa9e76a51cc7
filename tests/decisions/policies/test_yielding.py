"""A queue yields to work, and to nothing that cannot start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.contract.hookspecs import QueueHoldDetails
from gpuqueue.decisions.policies.yielding import Yielding
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.view import QueueView
from gpuqueue.testing.views import BATCH, REALTIME, view


def hold(realtime: QueueView, *held: Hold) -> Hold | None:
    return Yielding().queue_hold(QueueHoldDetails(BATCH, view(realtime, QueueView(BATCH)), {"ai-realtime": held}))


@pytest.mark.parametrize(
    ("running", "waiting", "said"),
    [
        (1, 0, "ai-realtime comes first (1 running, 0 waiting)"),
        (0, 3, "ai-realtime comes first (0 running, 3 waiting)"),
        (0, 100, "ai-realtime comes first (0 running, 100+ waiting)"),
    ],
)
def test_a_queue_is_held_while_another_has_work(running, waiting, said):
    assert hold(QueueView(REALTIME, running_count=running, waiting_count=waiting)) == Hold("yielding", said, ends_with_jobs=True)


@pytest.mark.parametrize(
    "realtime", [QueueView(REALTIME), QueueView(REALTIME, waiting_count=3, served=False)], ids=["idle", "not served"]
)
def test_a_queue_is_free_when_the_other_has_nothing_that_can_start(realtime):
    assert hold(realtime) is None


def test_jobs_that_are_held_are_no_work_but_running_ones_are():
    assert hold(QueueView(REALTIME, waiting_count=3), Hold("paused", "by ana")) is None
    assert hold(QueueView(REALTIME, running_count=1, waiting_count=3), Hold("paused", "by ana")) == Hold(
        "yielding", "ai-realtime comes first (1 running, 0 waiting)", ends_with_jobs=True
    )


def test_a_queue_that_is_not_there_is_not_yielded_to():
    assert Yielding().queue_hold(QueueHoldDetails(replace(BATCH, yields_to=("gone",)), view(), {})) is None
