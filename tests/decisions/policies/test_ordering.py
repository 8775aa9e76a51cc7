"""The order in which waiting jobs are tried for a device."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from gpuqueue.contract.hookspecs import OrderCandidatesDetails
from gpuqueue.decisions.policies.ordering import Ordering, passed
from gpuqueue.domain.device import Resident
from gpuqueue.domain.view import DeviceView
from gpuqueue.testing.views import GPU0, NOW, job, reservation, view


def test_priority_comes_first_then_the_due_time_then_the_id_over_all_queues():
    later = NOW + timedelta(seconds=1)
    candidates = (
        job(5),
        job(4, scheduled_at=later),
        job(3, queue="ai-realtime"),
        job(2, priority=1, scheduled_at=later),
        job(1, priority=-1),
    )
    ordered = Ordering().order_candidates(OrderCandidatesDetails(candidates, view()))
    assert [item.id for item in ordered] == [2, 3, 5, 4, 1]


LOADED = DeviceView(GPU0, residents=(Resident("nomic-embed-text:latest", 1, 1),))


def ordered(*candidates, device=LOADED):
    found = Ordering().order_candidates(OrderCandidatesDetails(candidates, view(devices=(device,))))
    return [item.id for item in found]


def test_of_equal_priority_the_jobs_of_the_loaded_model_come_first():
    gemma, nomic = job(1, model="gemma4:e4b"), job(2, model="nomic-embed-text", scheduled_at=NOW + timedelta(seconds=1))
    assert ordered(gemma, nomic) == [2, 1]
    assert ordered(replace(gemma, priority=1), nomic) == [1, 2]
    assert ordered(gemma, nomic, device=replace(LOADED, residents=())) == [1, 2]


def test_the_model_of_a_running_job_counts_as_loaded_before_any_clean_up_has_seen_it():
    gemma, nomic = job(1, model="gemma4:e4b"), job(2, model="nomic-embed-text", scheduled_at=NOW + timedelta(seconds=1))
    running = reservation(7, model="nomic-embed-text")
    assert ordered(gemma, nomic, device=replace(LOADED, residents=(), reservations=(running,))) == [2, 1]
    without_model = replace(nomic, model="")
    plain = replace(running, model="")
    assert ordered(gemma, without_model, device=replace(LOADED, residents=(), reservations=(plain,))) == [1, 2]


def test_a_job_that_was_passed_for_long_enough_comes_first_from_then_on():
    gemma, nomic = job(1, model="gemma4:e4b"), job(2, model="nomic-embed-text", scheduled_at=NOW + timedelta(seconds=1))
    assert ordered(replace(gemma, passed_at=NOW - timedelta(seconds=119)), nomic) == [2, 1]
    assert ordered(replace(gemma, passed_at=NOW - timedelta(seconds=120)), nomic) == [1, 2]
    assert ordered(replace(gemma, passed_at=NOW - timedelta(seconds=120)), replace(nomic, priority=1)) == [2, 1]


def test_no_job_is_passed_where_the_affinity_is_0():
    gemma, nomic = job(1, model="gemma4:e4b"), job(2, model="nomic-embed-text", scheduled_at=NOW + timedelta(seconds=1))
    assert ordered(gemma, nomic, device=replace(LOADED, settings=replace(GPU0, affinity_s=0))) == [1, 2]


def test_a_job_passes_the_first_one_of_its_priority():
    first, second, urgent = job(1, model="gemma4:e4b"), job(2, model="nomic-embed-text"), job(3, priority=1)
    assert passed(second, [second, first]) == 1
    assert passed(first, [second, first]) is None
    assert passed(replace(second, model="gemma4:e4b"), [second, first]) is None, "its model is not why"
    assert passed(second, [urgent, first, second]) is None, "the urgent one could not start; it was not passed"
