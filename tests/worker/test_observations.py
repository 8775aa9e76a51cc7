"""What is learned from a model's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from gpuqueue import GPUQueue
from gpuqueue.domain.estimates import OUTPUT, OUTPUT_RATE, PROMPT_RATE, RUN
from gpuqueue.domain.job import Lease
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.observations import Observations
from gpuqueue.worker.site import Site

LEASE = replace(Lease(1, 1, "default", "ollama.chat", 1, 1, {}, None, datetime.now(UTC)), model="m")
ANSWER = {"prompt_tokens": 100, "prompt_s": 0.5, "output_tokens": 400, "generate_s": 8.0}


@pytest.fixture
def learned(make_queue: Callable[..., GPUQueue]) -> Callable[[dict[str, Any]], dict[str, float]]:
    gq = make_queue()
    clock = Clock(wall=gq.now_us)
    observations = Observations(Site("w", gq.store, gq.plugins, gq.own_settings(), clock, WorkerLog("w"), {}))

    def learn(answer: dict[str, Any]) -> dict[str, float]:
        observations.of_answer(LEASE, answer, {})
        observations.tell()
        return {kind: found.value for (kind, _), found in gq.view().estimates.items()}

    return learn


def test_an_answer_teaches_how_fast_it_was_read_and_written_and_how_long_it_is(learned) -> None:
    assert learned(ANSWER) == {PROMPT_RATE: 200.0, OUTPUT_RATE: 50.0, OUTPUT: 400, RUN: 8.5}


def test_a_continued_answer_teaches_its_whole_length_and_the_speed_of_its_own_tokens(learned) -> None:
    assert learned({**ANSWER, "continued_tokens": 300, "generate_s": 2.0}) == {
        PROMPT_RATE: 200.0,
        OUTPUT_RATE: 50.0,
        OUTPUT: 400,
        RUN: 8.5,  # as if it had not been interrupted
    }


def test_an_answer_that_was_complete_when_it_was_cut_teaches_its_length_alone(learned) -> None:
    assert learned({"output_tokens": 400, "continued_tokens": 400, "prompt_s": 0.0, "generate_s": 0.0}) == {OUTPUT: 400}
