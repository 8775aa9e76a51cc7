"""Which running attempts make room for a job that comes first, and which are left alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, WaitingJob
from gpuqueue.decisions.policies.preemption import (
    LOOK_AGAIN_S,
    MOST_RESTARTED_S,
    STARTS_WITHIN_S,
    WRITES_FIRST_S,
    Preempting,
)
from gpuqueue.domain.answers import Demand, Preemption
from gpuqueue.domain.device import Resident
from gpuqueue.domain.estimates import OUTPUT_RATE, model_key
from gpuqueue.domain.view import DeviceView, Estimate, QueueView
from gpuqueue.domain.yielding import yielded_to
from gpuqueue.testing.views import BATCH, GB, GPU0, MAIL, NOW, REALTIME, backend, job, reservation, view

GEMMA = Demand(4_500_000_000, "gemma4:e4b")
RUNNING = replace(
    reservation(), task="ollama.generate", preemptible=True, started_at=NOW - timedelta(seconds=30), output_tokens=100
)


def chosen(*running, waiting=None, device=GPU0, batch=BATCH, estimates=None, seen=None):
    device = replace(seen or DeviceView(device), reservations=running)
    seen = view(
        QueueView(REALTIME),
        QueueView(batch),
        QueueView(MAIL),
        devices=(device,),
        ollama=backend(num_parallel=device.settings.slots),
    )
    seen = replace(seen, estimates=estimates or {})
    jobs = waiting or (WaitingJob(job(9, queue="ai-realtime", model="gemma4:e4b"), GEMMA, ("gpu0",)),)
    return Preempting().choose_preemptions(ChoosePreemptionsDetails(tuple(jobs), seen))


def test_the_attempt_that_is_in_the_way_makes_room():
    assert chosen(RUNNING) == [Preemption(7, 1, for_job=9)]


def test_an_attempt_that_was_asked_is_not_asked_again():
    assert chosen(replace(RUNNING, preempt_requested=True)) == []


def test_an_attempt_may_run_for_min_run_after_its_first_output_or_else_after_its_start():
    patient = replace(BATCH, min_run_s=2.0)
    began = replace(RUNNING, started_at=NOW - timedelta(seconds=0.5))
    assert chosen(began, batch=patient) == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=1.5))]
    wrote = replace(began, started_at=NOW - timedelta(seconds=30), first_output_at=NOW - timedelta(seconds=1))
    assert chosen(wrote, batch=patient) == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=1))]


def test_an_attempt_that_continues_writes_for_as_long_as_it_took_to_start_or_half_of_it_for_its_own_model():
    other = (WaitingJob(job(9, queue="ai-realtime", model="small"), Demand(GB, "small"), ("gpu0",)),)
    again = replace(
        RUNNING,
        continues=True,
        preemptions=1,
        started_at=NOW - timedelta(seconds=9),
        first_output_at=NOW - timedelta(seconds=4),
    )
    assert chosen(again, waiting=other) == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=1))]
    assert chosen(again) == [Preemption(7, 1, for_job=9)]
    later = replace(again, started_at=NOW - timedelta(seconds=6), first_output_at=NOW - timedelta(seconds=1))
    assert chosen(later) == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=1.5))]
    silent = chosen(replace(again, first_output_at=None))
    assert [item.not_before for item in silent] == [NOW + timedelta(seconds=LOOK_AGAIN_S)], "it is looked at again"
    assert chosen(replace(again, preemptions=0)) == [Preemption(7, 1, for_job=9)], "it has made up for nothing yet"


def test_where_starts_took_much_of_the_time_an_attempt_writes_first_before_a_job_of_a_model_that_is_not_loaded():
    other = (WaitingJob(job(9, queue="ai-realtime", model="small"), Demand(GB, "small"), ("gpu0",)),)
    wrote = replace(RUNNING, continues=True, first_output_at=NOW - timedelta(seconds=1))
    often = DeviceView(
        GPU0, restarted=((NOW - timedelta(seconds=301), 99.0), (NOW - timedelta(seconds=299), MOST_RESTARTED_S + 1))
    )
    at_once = [Preemption(7, 1, for_job=9)]
    assert chosen(wrote, waiting=other, seen=often) == [
        Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=WRITES_FIRST_S - 1))
    ]
    assert chosen(wrote, waiting=other, seen=replace(often, restarted=often.restarted[:1])) == at_once, "long ago"
    assert chosen(wrote, seen=often) == at_once, "its own model need not be loaded again"
    both = replace(often, residents=(Resident("small", GB, GB),), settings=replace(GPU0, max_models=2))
    assert chosen(wrote, waiting=other, seen=both) == at_once, "nor need another one that is loaded too"


def test_an_attempt_whose_server_seems_to_hang_does_not_wait_for_its_first_output_for_ever():
    silent = replace(RUNNING, continues=True, preemptions=1)
    assert chosen(replace(silent, started_at=NOW - timedelta(seconds=STARTS_WITHIN_S))) == [Preemption(7, 1, for_job=9)]


def test_memory_that_comes_back_is_no_reason_to_wait_with_another_preemption():
    leaving = replace(RUNNING, job_id=8, model="small", reserved_bytes=100, running=False)
    assert chosen(RUNNING, leaving) == []
    assert chosen(RUNNING, replace(leaving, unloaded=True)) == [Preemption(7, 1, for_job=9)]


def test_work_that_is_continued_is_preempted_however_often_and_other_work_while_little_is_thrown_away():
    minutes = tuple((NOW - timedelta(minutes=number), 60.0) for number in (70, 50, 40, 30, 20, 10))  # 300 s in the last hour
    card = DeviceView(GPU0, thrown=minutes)
    assert chosen(replace(RUNNING, preemptions=50), seen=card) == [Preemption(7, 1, for_job=9)]
    longer = replace(RUNNING, started_at=NOW - timedelta(seconds=61))
    assert chosen(longer, seen=card) == []
    assert chosen(replace(longer, continues=True, first_output_at=NOW), seen=card) == [Preemption(7, 1, for_job=9)]


def test_a_protected_job_lets_nobody_wait_for_longer_than_its_queue_says():
    card = DeviceView(GPU0, thrown=((NOW, 360.0),))
    bounded = replace(BATCH, protect_s=10.0)
    person = WaitingJob(
        job(9, queue="ai-realtime", model="gemma4:e4b", scheduled_at=NOW - timedelta(seconds=4)), GEMMA, ("gpu0",)
    )
    assert chosen(RUNNING, seen=card, waiting=(person,)) == []
    found = chosen(RUNNING, seen=card, waiting=(person,), batch=bounded)
    assert found == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=6))]


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        ({"preemptible": False}, BATCH),
        ({"queue": "ai-realtime"}, BATCH),
        ({"preemptions": 5}, replace(BATCH, max_preemptions=5)),
        ({}, replace(BATCH, yield_mode="drain")),
        ({}, replace(BATCH, yields_to=())),
        ({}, replace(BATCH, max_preemptions=0)),
    ],
    ids=["it cannot", "a queue that comes first itself", "often enough", "drain", "yields to nobody", "never"],
)
def test_an_attempt_is_left_alone(change, batch):
    assert chosen(replace(RUNNING, **change), batch=batch) == []


def test_an_attempt_that_is_expected_to_end_soon_is_left_alone_until_it_should_have_ended():
    rate = {(OUTPUT_RATE, model_key("gemma4:e4b")): Estimate(50, 9)}
    almost = replace(RUNNING, output_tokens=960, output_limit=1000)
    assert chosen(almost, estimates=rate) == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=0.8))]
    assert chosen(replace(almost, output_limit=1100), estimates=rate) == [Preemption(7, 1, for_job=9)]


def test_what_gives_its_memory_back_already_is_waited_for():
    assert chosen(replace(RUNNING, running=False)) == []
    two = replace(GPU0, slots=2, budget_bytes=9 * GB)
    assert chosen(RUNNING, replace(RUNNING, job_id=8, running=False), device=two) == []


def test_no_more_attempts_end_than_must_and_the_youngest_first():
    three = replace(GPU0, slots=3, budget_bytes=14 * GB, max_models=3)
    old = replace(RUNNING, job_id=1, model="a", started_at=NOW - timedelta(minutes=9))
    young = replace(RUNNING, job_id=2, model="b", started_at=NOW - timedelta(minutes=1))
    middle = replace(RUNNING, job_id=3, model="c", started_at=NOW - timedelta(minutes=5))
    assert chosen(old, young, middle, device=three) == [Preemption(2, 1, for_job=9)]
    assert chosen(old, young, device=three) == [], "there is room"


def test_one_attempt_ends_for_a_job_of_the_same_model_and_all_that_share_another_model_do():
    two = replace(GPU0, slots=2)
    old = replace(RUNNING, job_id=1, started_at=NOW - timedelta(minutes=4))
    young = replace(RUNNING, job_id=2, started_at=NOW - timedelta(minutes=1))
    assert chosen(old, young, device=two) == [Preemption(2, 1, for_job=9)]
    other = WaitingJob(job(9, queue="ai-realtime"), Demand(GB, "nomic-embed-text"), ("gpu0",))
    assert chosen(old, young, device=two, waiting=[other]) == [Preemption(2, 1, for_job=9), Preemption(1, 1, for_job=9)]
    older = replace(old, started_at=NOW - timedelta(minutes=5.5))
    assert chosen(older, young, device=two, waiting=[other]) == [], "more than 6 minutes would be thrown away in all"


def test_nobody_is_interrupted_for_a_job_that_would_not_fit_all_the_same():
    huge = WaitingJob(job(9, queue="ai-realtime"), Demand(9 * GB), ("gpu0",))
    assert chosen(RUNNING, waiting=(huge,)) == []


def test_one_attempt_makes_room_once_for_several_jobs_that_wait():
    waiting = [WaitingJob(job(number, queue="ai-realtime"), GEMMA, ("gpu0",)) for number in (9, 10)]
    assert len(chosen(RUNNING, waiting=waiting)) == 1


def test_yielding_passes_through_a_queue_in_between():
    night = replace(MAIL, name="night", yields_to=("ai-batch",))
    seen = view(QueueView(REALTIME), QueueView(BATCH), QueueView(night))
    assert yielded_to(night, seen) == {"ai-batch", "ai-realtime"}
