"""Which running attempts make room for a job that comes first, and which are left alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, WaitingJob
from gpuqueue.decisions.policies.preemption import Preempting
from gpuqueue.domain.answers import Demand, Preemption
from gpuqueue.domain.estimates import OUTPUT_RATE, model_key
from gpuqueue.domain.view import DeviceView, Estimate, QueueView
from gpuqueue.domain.yielding import yielded_to
from gpuqueue.testing.views import BATCH, GB, GPU0, MAIL, NOW, REALTIME, backend, job, reservation, view

GEMMA = Demand(4_500_000_000, "gemma4:e4b")
RUNNING = replace(
    reservation(), task="ollama.generate", preemptible=True, started_at=NOW - timedelta(seconds=30), output_tokens=100
)


def chosen(*running, waiting=None, device=GPU0, batch=BATCH, estimates=None, queues=None):
    seen = view(
        *(queues or (QueueView(REALTIME), QueueView(batch), QueueView(MAIL))),
        devices=(DeviceView(device, reservations=running),),
        ollama=backend(num_parallel=device.slots),
    )
    seen = replace(seen, estimates=estimates or {})
    jobs = waiting or (WaitingJob(job(9, queue="ai-realtime", model="gemma4:e4b"), GEMMA, ("gpu0",)),)
    return Preempting().choose_preemptions(ChoosePreemptionsDetails(tuple(jobs), seen))


def test_the_attempt_that_is_in_the_way_makes_room():
    assert chosen(RUNNING) == [Preemption(7, 1, for_job=9)]


def test_an_attempt_that_was_asked_is_not_asked_again():
    assert chosen(replace(RUNNING, preempt_requested=True)) == []


def test_an_attempt_that_has_hardly_begun_is_asked_later():
    began = replace(RUNNING, started_at=NOW - timedelta(seconds=0.5))
    assert chosen(began) == [Preemption(7, 1, for_job=9, not_before=NOW + timedelta(seconds=1.5))]


@pytest.mark.parametrize(
    ("change", "batch"),
    [
        ({"preemptible": False}, BATCH),
        ({"queue": "ai-realtime"}, BATCH),
        ({"preemptions": 5}, BATCH),
        ({}, replace(BATCH, yield_mode="drain")),
        ({}, replace(BATCH, yields_to=())),
        ({}, replace(BATCH, max_preemptions=0)),
    ],
    ids=["it cannot", "a queue that comes first itself", "often enough", "drain", "yields to nobody", "never"],
)
def test_an_attempt_is_left_alone(change, batch):
    assert chosen(replace(RUNNING, **change), batch=batch) == []


def test_an_attempt_that_is_expected_to_end_soon_is_left_alone():
    rate = {(OUTPUT_RATE, model_key("gemma4:e4b")): Estimate(50, 9)}
    almost = replace(RUNNING, output_tokens=900, output_limit=1000)
    assert chosen(almost, estimates=rate) == []
    assert chosen(replace(almost, output_limit=1200), estimates=rate) == [Preemption(7, 1, for_job=9)]


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
    old = replace(RUNNING, job_id=1, started_at=NOW - timedelta(minutes=9))
    young = replace(RUNNING, job_id=2, started_at=NOW - timedelta(minutes=1))
    assert chosen(old, young, device=two) == [Preemption(2, 1, for_job=9)]
    other = WaitingJob(job(9, queue="ai-realtime"), Demand(GB, "nomic-embed-text"), ("gpu0",))
    assert chosen(old, young, device=two, waiting=[other]) == [Preemption(2, 1, for_job=9), Preemption(1, 1, for_job=9)]


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
