"""Whether a model can run, and which one takes its place when it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.contract.hookspecs import JobDemandDetails
from gpuqueue.decisions.policies.vram import Memory
from gpuqueue.domain.answers import Demand
from gpuqueue.domain.estimates import SHOWN, SPILLED, VRAM, model_key
from gpuqueue.domain.model_health import health
from gpuqueue.domain.view import Estimate
from gpuqueue.testing.views import BATCH, GB, backend, job, view

THERE = {"gemma4:e4b": 4 * GB, "small:latest": GB, "large:latest": 9 * GB}


def seen(models=THERE):
    return view(ollama=backend(models=models))


def known(*learned):
    return replace(seen(), estimates={(kind, model_key(name)): Estimate(value, 1) for kind, name, value in learned})


@pytest.mark.parametrize(
    ("model", "looked", "state", "said"),
    [
        ("gemma4:e4b", seen(), "fits", "gemma4:e4b needs 4.5 GB"),
        ("small", seen(), "unknown", "the size of small is not known yet"),
        ("small", known((SHOWN, "small", 2 * GB)), "fits", "small needs 2 GB"),
        ("absent", seen(), "missing", "absent is not installed on ollama; install it there with: ollama pull absent"),
        ("absent", seen(models=None), "unknown", "the size of absent is not known yet"),
        ("large", known((VRAM, "large", 9 * GB)), "too_large", "large needs 9 GB; the largest budget is 5 GB"),
        (
            "gemma4:e4b",
            known((SPILLED, "gemma4:e4b", GB)),
            "spills",
            "gemma4:e4b needs 4.5 GB; 1 GB of it recently ran on the CPU",
        ),
        ("gemma4:e4b", known((SPILLED, "gemma4:e4b", 1000)), "fits", "gemma4:e4b needs 4.5 GB"),
    ],
)
def test_a_model_is_as_it_was_seen(model, looked, state, said):
    found = health(model, BATCH, looked)
    assert (found.state, found.detail) == (state, said)
    assert found.is_usable == (state not in ("missing", "too_large"))


def test_a_model_that_one_of_two_ollamas_has_is_not_missing():
    desk, tower = backend(name="desk", models={}), backend(name="tower", models=THERE)
    both = replace(seen(), backends={"desk": desk, "tower": tower})
    assert health("small", BATCH, both).state == "unknown"
    assert health("small", replace(BATCH, backend="desk"), both).state == "missing"
    assert health("absent", BATCH, both).detail.startswith("absent is not installed on desk, tower;")


def demand(model, queue=BATCH, looked=None, **changes):
    waiting = job(arguments={"model": model, "prompt": "x"}, **changes)
    return Memory().job_demand(JobDemandDetails(waiting, queue, looked or known((VRAM, "large", 9 * GB))))


def test_a_model_that_cannot_run_gives_way_to_the_first_that_can():
    ours = Demand(4_500_000_000, "gemma4:e4b")
    assert demand("absent", fallback=("large", "gone", "gemma4:e4b", "small")) == ours
    assert demand("large", fallback=("gemma4:e4b",)) == ours
    assert demand("absent", replace(BATCH, fallback=("gemma4:e4b",))) == ours, "the queue's, where the job names none"
    assert demand("absent", replace(BATCH, fallback=("small",)), fallback=("gemma4:e4b",)) == ours
    assert demand("gemma4:e4b", fallback=("small",)) == ours, "its own model can run"


def test_where_none_can_run_the_jobs_own_is_tried_and_says_what_is_wrong():
    assert demand("absent", fallback=("gone",)).model == "absent"
    assert demand("absent").model == "absent"


def test_a_size_that_the_job_asked_for_holds_for_whichever_model():
    assert demand("absent", fallback=("gemma4:e4b",), wanted_bytes=GB) == Demand(GB, "gemma4:e4b")
