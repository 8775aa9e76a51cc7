"""Windows that limit a queue, and what becomes of a job that would run into a pause."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, PlaceJobDetails, QueueHoldDetails, QueueLimitsDetails
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.evaluation import limited
from gpuqueue.decisions.policies import default_policies
from gpuqueue.decisions.policies.windows import Windows
from gpuqueue.domain import estimates
from gpuqueue.domain.answers import Demand, Limits, Preemption, Wait
from gpuqueue.domain.estimates import work_key
from gpuqueue.domain.settings import Rate, WindowRule
from gpuqueue.domain.view import DeviceView, Estimate, QueueView
from gpuqueue.testing.views import BATCH, GPU0, MAIL, NOW, job, reservation, view

NOON, EVENING = "09:00-18:00", "18:00-09:00"  # NOW is at 12:00 UTC


def limits(*rules, **changes):
    return Windows().queue_limits(QueueLimitsDetails(replace(BATCH, windows=rules, **changes), NOW))


def test_only_the_open_windows_limit_and_of_several_the_tightest():
    assert limits() is None
    assert limits(WindowRule(EVENING, concurrency=1)) is None
    assert limits(WindowRule(NOON, concurrency=1)) == Limits(1, None, "its window 09:00-18:00 UTC")
    slow, fast = Rate(1, 60), Rate(10, 60)
    found = limits(WindowRule(NOON, 3, fast), WindowRule("11:00-13:00", 2, slow), WindowRule(EVENING, 1))
    assert found == Limits(2, slow, "its window 09:00-18:00, 11:00-13:00 UTC")
    assert limits(WindowRule(NOON, concurrency=1), timezone="Asia/Bangkok") is None, "it is 19:00 there"


@pytest.mark.parametrize(
    ("configured", "window", "now"), [(None, 2, 2), (1, 2, 1), (5, 2, 2)], ids=["no limit", "tighter already", "looser"]
)
def test_a_window_tightens_and_never_loosens(configured, window, now):
    queue = replace(BATCH, concurrency=configured, windows=(WindowRule(NOON, concurrency=window),))
    seen = limited(view(QueueView(queue)), Plugins(default_policies(), discover=False))
    assert seen.queues["ai-batch"].settings.concurrency == now
    assert bool(seen.queues["ai-batch"].limited_by) == (now != configured)


RUNS_TEN_MINUTES = {
    (estimates.RUN, work_key("ai-batch", "ollama.generate", "gemma4:e4b")): Estimate(600.0, 3),
    (estimates.RUN, work_key("mail", "send", "")): Estimate(600.0, 3),
}


def placed(pause, overrun="dont_start", known=RUNS_TEN_MINUTES):
    queue = replace(BATCH, pause=(pause,), overrun=overrun)
    seen = replace(view(QueueView(queue)), estimates=known)
    return Windows().place_job(PlaceJobDetails(job(), Demand(1, "gemma4:e4b"), queue, seen))


def test_a_job_that_usually_takes_longer_than_is_left_does_not_start():
    assert placed("12:05-18:00") == Wait(
        "window_near", "usually runs for 10m, but a pause starts in 5m; it must wait", NOW + timedelta(hours=6)
    )
    assert placed("12:30-18:00") is None, "there is time"
    assert placed("12:05-18:00", "finish") is None
    assert placed("12:05-18:00", known={}) is None, "nobody knows how long it takes"


def test_a_queue_without_a_device_is_held_before_its_longest_kind_would_run_into_the_pause():
    queue = replace(MAIL, pause=("12:05-18:00",), overrun="dont_start")
    seen = replace(view(QueueView(queue)), estimates=RUNS_TEN_MINUTES)
    found = Windows().queue_hold(QueueHoldDetails(queue, seen, {}))
    assert (found.reason, found.until) == ("window_near", NOW + timedelta(hours=6))
    assert Windows().queue_hold(QueueHoldDetails(replace(queue, overrun="finish"), seen, {})) is None


def stopped(pause, overrun="preempt", **changes):
    running = replace(reservation(7), **{"preemptible": True, **changes})
    queue = replace(BATCH, pause=(pause,), overrun=overrun)
    seen = view(QueueView(queue), devices=(DeviceView(GPU0, reservations=(running,)),))
    return Windows().choose_preemptions(ChoosePreemptionsDetails((), seen))


def test_a_running_job_is_stopped_when_its_queues_pause_begins():
    assert stopped(NOON) == [Preemption(7, 1)]
    assert stopped(EVENING) == []
    assert stopped(NOON, "finish") == []
    assert stopped(NOON, preemptible=False) == []
    assert stopped(NOON, preempt_requested=True) == []
    assert stopped(NOON, running=False) == []
