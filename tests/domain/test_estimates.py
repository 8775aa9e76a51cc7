"""What is learned from jobs, and what follows from it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.domain import estimates
from gpuqueue.domain.estimates import Length, Observation, alike, believed, left_s, length, model_key, observed, total, work_key
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
