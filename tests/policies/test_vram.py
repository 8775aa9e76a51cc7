"""What a job needs of a device, and where it fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.domain import Demand, DeviceView, Placement
from gpuqueue.hookspecs import JobDemandDetails, PlaceJobDetails
from gpuqueue.policies.vram import VRAM
from gpuqueue.testing.views import BATCH, GB, GPU0, job, reservation, view

GEMMA = Demand(4_500_000_000, "gemma4:e4b")
NOMIC = Demand(500_000_000, "nomic-embed-text")
WIDE = replace(GPU0, slots=3, max_models=2)


@pytest.mark.parametrize(
    ("changes", "demand"),
    [
        ({}, GEMMA),
        ({"arguments": {"model": "nomic-embed-text:latest"}}, Demand(500_000_000, "nomic-embed-text:latest")),
        ({"arguments": {"model": "unsized"}}, Demand(5 * GB, "unsized")),
        ({"task": "app.train", "arguments": {"model": "gemma4:e4b"}}, Demand(5 * GB)),
    ],
    ids=["configured", "configured without its tag", "a model of unknown size", "a function"],
)
def test_a_job_needs_its_models_size_or_the_whole_budget(changes, demand):
    assert VRAM().job_demand(JobDemandDetails(job(**changes), BATCH, view())) == demand


def place(demand, *devices):
    answer = VRAM().place_job(PlaceJobDetails(job(), demand, BATCH, view(devices=devices)))
    return answer if isinstance(answer, Placement) else (answer.reason, answer.detail)


def test_an_idle_device_takes_what_its_budget_allows():
    assert place(GEMMA, DeviceView(GPU0)) == Placement("gpu0", 4_500_000_000)


@pytest.mark.parametrize(
    ("demand", "device", "reason", "said"),
    [
        (Demand(6 * GB), DeviceView(GPU0), "never_fits", "needs 6 GB, the budget of gpu0 is 5 GB; raise [gpu] budget"),
        (NOMIC, DeviceView(GPU0, reservations=(reservation(),)), "device_busy", "gpu0 runs job 7 of ai-batch"),
        (
            NOMIC,
            DeviceView(GPU0, reservations=(reservation(running=False),)),
            "clean_up",
            "gpu0 gets back the memory of job 7",
        ),
        (
            NOMIC,
            DeviceView(replace(WIDE, max_models=1), reservations=(reservation(),)),
            "max_models",
            "gpu0 runs gemma4:e4b and may hold 1 model",
        ),
        (
            GEMMA,
            DeviceView(WIDE, reservations=(reservation(bytes=GB, model="other"),)),
            "vram",
            "needs 4.5 GB, 4 GB of the budget of gpu0 are free",
        ),
    ],
)
def test_a_job_that_does_not_fit_is_told_why(demand, device, reason, said):
    found = place(demand, device)
    assert found[0] == reason
    assert said in found[1]


def test_memory_that_is_not_seen_to_be_back_still_counts():
    assert place(NOMIC, DeviceView(WIDE, reservations=(reservation(bytes=4_800_000_000, running=False),)))[0] == "vram"


def test_several_jobs_share_a_device_that_has_slots_models_and_room():
    assert place(NOMIC, DeviceView(WIDE, reservations=(reservation(),))) == Placement("gpu0", 500_000_000)


def test_of_several_devices_the_first_with_room_is_taken():
    second = replace(GPU0, name="gpu1")
    assert place(GEMMA, DeviceView(GPU0, reservations=(reservation(),)), DeviceView(second)) == Placement("gpu1", 4_500_000_000)


def test_a_device_that_may_take_the_job_later_is_named_before_one_that_never_can():
    small = replace(GPU0, name="gpu1", budget_bytes=GB)
    assert place(GEMMA, DeviceView(small), DeviceView(GPU0, reservations=(reservation(),)))[0] == "device_busy"


def test_a_gpu_queue_without_a_device_says_so():
    assert place(GEMMA) == ("no_device", "queue 'ai-batch' has gpu = true, but no [gpu] is configured")
