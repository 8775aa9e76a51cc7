"""What is learned from jobs, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.domain import estimates
from gpuqueue.domain.estimates import (
    Length,
    Observation,
    alike,
    believed,
    left_s,
    length,
    model_key,
    next_use_s,
    observed,
    total,
    work_key,
    worth_keeping_s,
)
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import Estimate
from gpuqueue.testing.views import NOW, reservation

WRITING = replace(reservation(), task="ollama.generate", started_at=NOW - timedelta(seconds=30), output_tokens=100)
RATE = {(estimates.OUTPUT_RATE, model_key("gemma4:e4b")): Estimate(50.0, 9)}
USUAL = {(estimates.OUTPUT, work_key("ai-batch", "ollama.generate", "gemma4:e4b")): Estimate(400.0, 9)}


def folded(kind, *values):
    found = None
    for value in values:
        found = believed(found, Observation(kind, "k", value))
    return found


def test_a_mean_begins_with_what_is_seen_first_and_then_follows_what_is_seen_last():
    assert folded("load_s", 4.0) == Estimate(4.0, 1)
    assert folded("load_s", 4.0, 2.0) == Estimate(3.0, 2)
    assert folded("load_s", 10, 10, 10, 10, 10, 0).value == pytest.approx(8.0)
    late = folded("load_s", *[10] * 5, *[2] * 40)
    assert late.value == pytest.approx(2.0, abs=0.01)


def test_of_sizes_the_highest_is_kept():
    assert folded("vram_bytes", 4, 9, 5) == Estimate(9, 3)


def test_two_names_of_one_model_are_learned_together_and_its_memory_options_apart():
    assert model_key("Gemma4") == model_key("gemma4:latest")
    assert model_key("m", {"num_ctx": 1, "num_gpu": 2}) == model_key("m", {"num_gpu": 2, "num_ctx": 1}) != model_key("m")


def test_an_answer_is_expected_to_end_at_its_limit_or_its_usual_length():
    assert left_s(RATE, WRITING, NOW) is None, "nothing says how long it will be"
    assert left_s({}, replace(WRITING, output_limit=200), NOW) is None, "nothing says how fast it is"
    assert left_s(RATE, replace(WRITING, output_limit=200), NOW) == 2.0
    assert left_s({**RATE, **USUAL}, replace(WRITING, output_limit=5000), NOW) == 6.0
    assert left_s({**RATE, **USUAL}, replace(WRITING, output_limit=5000, output_tokens=500), NOW) == 90.0


def test_a_function_is_expected_to_take_as_long_as_it_usually_does():
    running = replace(WRITING, model="", task="train", queue="train")
    usual = {(estimates.RUN, work_key("train", "train", "")): Estimate(45.0, 3)}
    assert left_s(usual, running, NOW) == 15.0
    assert left_s(usual, replace(running, started_at=NOW - timedelta(minutes=5)), NOW) is None
    assert left_s({}, running, NOW) is None


def test_how_far_values_are_from_their_mean_is_learned_too():
    first = list(observed(Observation("turn_s", "k", 40.0), None))
    assert first == [Observation("turn_s spread", "k", 20.0), Observation("turn_s", "k", 40.0)], (
        "one value says little of the next"
    )
    assert next(iter(observed(Observation("turn_s", "k", 40.0), Estimate(50.0, 3)))).value == 10.0
    assert list(observed(Observation("vram_bytes", "k", 4.0), None)) == [Observation("vram_bytes", "k", 4.0)]


def test_lengths_add_up_and_what_a_mean_is_off_counts_for_each():
    assert total([Length(10.0, 4.0), Length(5.0, 1.0)]) == Length(15.0, 5.0)
    assert alike(Length(10.0, 4.0), 3, behind=2) == Length(30.0, 4.0 * (3 + 9 / 2))
    known = {("turn_s", "k"): Estimate(10.0, 2), ("turn_s spread", "k"): Estimate(4.0, 2)}
    assert length(known, "turn_s", "k") == Length(10.0, 25.0 * (1 + 1 / 2))
    assert length(known, "turn_s", "other") is None


def test_a_range_has_a_long_end_and_never_reaches_zero():
    low, high = Length(10.0, 100.0).range_s(1.0)
    assert 0 < low < 10.0 < high
    assert Length(10.0, 10_000.0).range_s(1.0)[0] > 0
    low, high = Length(10.0, 1.0).range_s(1.0)
    assert (low, high) == pytest.approx((9.0, 11.0), abs=0.05)
    assert Length(10.0).range_s(1.0) == (10.0, 10.0)
    assert Length(0.0, 4.0).range_s(1.0) == (0.0, 0.0)


# How long a model is kept for a job that is only expected

SIZED = {"num_ctx": 4096}
GEMMA_LOADS = {
    (estimates.LOAD, model_key("gemma4:e4b", SIZED)): Estimate(2.0, 3),
    (estimates.RELEASE, model_key("gemma4:e4b")): Estimate(1.0, 3),
}


def ends(queue, gap_s, *, ago_s=0.0, run_s=0.0, model="gemma4:e4b"):
    key = work_key(queue, "ollama.chat", model)
    at_us = to_us(NOW - timedelta(seconds=ago_s))
    return {(estimates.GAP, key): Estimate(gap_s, 9, at_us), (estimates.RUN, key): Estimate(run_s, 9, at_us)}


def test_a_model_is_kept_ten_times_as_long_as_it_takes_to_unload_and_load_it():
    assert worth_keeping_s(GEMMA_LOADS, "gemma4:e4b", SIZED) == 30.0
    assert worth_keeping_s(GEMMA_LOADS, "gemma4:e4b", {"num_ctx": 8192}) == 0.0, "never seen to load"
    assert worth_keeping_s({}, "gemma4:e4b", SIZED) == 0.0


@pytest.mark.parametrize("gap_s", [0.1, 1.0, 29.0, 31.0, 1000.0])
def test_whenever_the_next_job_comes_it_never_costs_more_than_twice_what_hindsight_would(gap_s):
    reload_s = 3.0 * estimates.KEPT_PER_LOADED  # in seconds of kept memory
    stay_s = worth_keeping_s(GEMMA_LOADS, "gemma4:e4b", SIZED)
    paid = gap_s if gap_s <= stay_s else stay_s + reload_s
    assert paid <= 2 * min(gap_s, reload_s)


def test_a_model_is_needed_again_as_long_after_a_job_as_jobs_of_its_kind_usually_begin():
    assert next_use_s(ends("chat", 10.0, run_s=4.0), "gemma4:e4b", NOW) == pytest.approx(6.0)
    assert next_use_s(ends("chat", 10.0), "nomic-embed-text", NOW) is None
    assert next_use_s(ends("chat", 10.0, model="my-gemma4:e4b"), "gemma4:e4b", NOW) is None
    assert next_use_s({}, "gemma4:e4b", NOW) is None


def test_queues_that_need_one_model_need_it_sooner_together():
    assert next_use_s({**ends("chat", 10.0), **ends("batch", 10.0)}, "gemma4:e4b", NOW) == pytest.approx(5.0)


def test_a_queue_that_had_no_job_for_longer_than_usual_is_expected_later():
    assert next_use_s(ends("chat", 10.0, ago_s=3600.0), "gemma4:e4b", NOW) == pytest.approx(3600.0)


def test_jobs_that_follow_each_other_at_once_are_expected_at_once():
    assert next_use_s(ends("chat", 4.0, run_s=4.0), "gemma4:e4b", NOW) == pytest.approx(0.0, abs=0.1)
