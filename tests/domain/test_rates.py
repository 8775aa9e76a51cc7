"""How a rate is written, how it fills, and that a queue begins no more jobs than it allows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
import time_machine

from gpuqueue import Rate, UsageError, Worker
from gpuqueue.contract.hookspecs import QueueHoldDetails
from gpuqueue.decisions.policies.rates import Rates
from gpuqueue.domain.rates import format_rate, level, next_in_s, parse_rate
from gpuqueue.domain.view import QueueView
from gpuqueue.testing.views import MAIL, NOW, view


@pytest.mark.parametrize(
    ("text", "count", "per_s"),
    [("10/m", 10, 60), ("1/30s", 1, 30), ("100/h", 100, 3600), ("5/d", 5, 86400), (" 2 / 1.5 m ", 2, 90), ("3/500ms", 3, 0.5)],
)
def test_a_rate_is_a_count_in_a_time(text, count, per_s):
    assert parse_rate(text) == Rate(count, per_s)


@pytest.mark.parametrize("text", ["", "10", "10/", "/m", "0/m", "1.5/m", "10/0s", "10 per minute", "-1/m", 10, None])
def test_what_is_no_rate_is_refused_with_right_examples(text):
    with pytest.raises(UsageError, match="rate"):
        parse_rate(text)


def test_a_rate_fills_evenly_up_to_its_count():
    rate = Rate(10, 60)
    assert level(rate, None, 0) == 10, "it begins full"
    assert level(rate, 0, 6) == 1
    assert level(rate, 0, 600) == 10
    assert level(rate, 3, -5) == 3, "a clock that was set back takes nothing away"
    assert next_in_s(rate, 0.5) == 3
    assert next_in_s(rate, 1) == 0
    assert format_rate(rate) == "10 in 1m"


def held(rate, rate_level):
    queue = replace(MAIL, rate=rate)
    return Rates().queue_hold(QueueHoldDetails(queue, view(QueueView(queue, rate_level=rate_level)), {}))


def test_a_queue_whose_rate_is_spent_is_held_until_the_next_may_begin():
    assert held(None, None) is None
    assert held(Rate(10, 60), 1.0) is None
    found = held(Rate(10, 60), 0.5)
    assert (found.reason, found.detail, found.until) == ("rate", "at its rate limit of 10 in 1m", NOW + timedelta(seconds=3))


@pytest.mark.parametrize("isolated_by", ["threads", "device"])
def test_no_more_jobs_begin_than_the_rate_allows(make_queue, isolated_by):
    on_device = isolated_by == "device"
    gpu = '[gpu]\nbudget = "1GB"\n' if on_device else ""
    gq = make_queue(f'{gpu}[queues.slow]\nrate = "2/h"\ngpu = {str(on_device).lower()}\n')
    done = []
    gq.task(name="note", queue="slow")(lambda: done.append(1))
    for _ in range(5):
        gq.enqueue("note")
    Worker(gq, burst=True).run()
    assert len(done) == 2
    (hold,) = gq.holds()["slow"]
    assert hold.reason == "rate"
    assert timedelta(minutes=29) < hold.until - gq.now() <= timedelta(minutes=30)
    with time_machine.travel(gq.now() + timedelta(minutes=31)):
        Worker(gq, burst=True).run()
    assert len(done) == 3
    with time_machine.travel(gq.now() + timedelta(hours=5)):
        Worker(gq, burst=True).run()
    assert len(done) == 5
