"""What reservations take together, and what keeps one more job off a device."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.domain.room import Share, lack, parallel_on, room_bytes, sharing_with, taken_bytes
from gpuqueue.domain.settings import BackendSettings, DeviceSettings
from gpuqueue.testing.views import reservation

GB = 10**9
CARD = DeviceSettings("gpu0", 5 * GB, slots=3, max_models=2)


def request(model: str, gb: float, *, running: bool = True) -> Share:
    return Share("ollama.generate", model, int(gb * GB), running)


def unloaded(model: str, gb: float) -> Share:
    return Share("ollama.generate", model, int(gb * GB), running=False, unloaded=True)


def function(gb: float, model: str = "") -> Share:
    return Share("app.train", model, int(gb * GB))


@pytest.mark.parametrize(
    ("taken", "gb"),
    [
        ([], 0),
        ([request("m", 4), request("M:latest", 4)], 4),
        ([request("m", 3), request("m", 4, running=False)], 4),
        ([request("m", 3), request("n", 1), function(1)], 5),
        ([function(2, "m"), function(2, "m"), request("m", 1)], 5),
        ([unloaded("m", 3), request("m", 2)], 5),
    ],
    ids=[
        "nothing",
        "one model",
        "the largest counts, also while it is cleaned up",
        "each its own",
        "a function has its own",
        "a model that was unloaded shares nothing with the next load",
    ],
)
def test_a_model_in_a_servers_memory_counts_once(taken: list[Share], gb: int) -> None:
    assert taken_bytes(taken) == gb * GB


@pytest.mark.parametrize(
    ("job", "taken", "parallel", "found"),
    [
        (request("m", 4), [], 1, None),
        (request("m", 4), [request("m", 4)], 2, None),
        (request("m", 4), [request("m", 4)], 1, "parallel"),
        (request("m", 4), [request("m", 4), request("m", 4, running=False)], 2, "parallel"),
        (request("m", 4), [request("m", 4, running=False)], 2, "clean_up"),
        (request("m", 4), [request("m", 4, running=False), request("m", 4)], 3, None),
        (request("n", 1), [request("m", 4, running=False)], 2, None),
        (request("n", 1.1), [request("m", 4)], 2, "vram"),
        (request("m", 5), [request("m", 4)], 2, None),
        (request("m", 5), [request("m", 4), request("n", 1)], 2, "vram"),
        (request("k", 0), [request("m", 1), request("n", 1)], 2, "max_models"),
        (function(0), [request("m", 1), request("n", 1)], 2, None),
        (function(1), [function(1), function(1), function(1)], 2, "slots"),
        (function(2, "m"), [function(2, "m")], 1, None),
        (function(3, "m"), [request("m", 3)], 2, "vram"),
        (request("k", 0), [unloaded("m", 1), request("n", 1)], 2, None),
        (function(1), [unloaded("m", 1), unloaded("n", 1), unloaded("k", 1)], 2, None),
        (request("n", 1), [unloaded("m", 4.1)], 2, "vram"),
        (request("m", 3), [unloaded("m", 2)], 2, None),
        (request("m", 3), [unloaded("m", 2.1)], 2, "vram"),
    ],
)
def test_a_job_lacks_what_the_others_leave_too_little_of(
    job: Share, taken: list[Share], parallel: int, found: str | None
) -> None:
    assert lack(CARD, job, taken, parallel=parallel) == found


def test_a_job_for_a_model_that_is_there_may_be_as_large_as_that_and_what_is_left() -> None:
    assert room_bytes(CARD, []) == 5 * GB
    assert room_bytes(CARD, [request("m", 4)]) == 5 * GB
    assert room_bytes(CARD, [function(4)]) == GB
    assert room_bytes(CARD, [request("m", 4)] * 3) == GB, "no slot is free"


@pytest.mark.parametrize(
    ("servers", "parallel"),
    [
        ([], 3),
        ([BackendSettings(num_parallel=2)], 2),
        ([BackendSettings(num_parallel=9, device="gpu0"), BackendSettings(device="gpu1")], 3),
        ([BackendSettings("a", num_parallel=4), BackendSettings("b", num_parallel=4)], 1),
    ],
    ids=["no server", "fewer than slots", "slots", "two servers may each load the model"],
)
def test_a_model_takes_as_many_jobs_at_once_as_device_and_server_do(servers: list[BackendSettings], parallel: int) -> None:
    assert parallel_on(CARD, servers) == parallel


def test_the_running_requests_to_the_same_model_are_beside_a_job() -> None:
    def held(job_id: int, model: str = "m", *, task: str = "ollama.chat", running: bool = True):
        return replace(reservation(job_id, model=model, running=running), task=task)

    there = [
        held(1, running=False),
        held(2),
        held(3, "n"),
        held(4, running=False),
        held(5, task="app.train"),
        held(6, "M:latest"),
    ]
    assert sharing_with(1, there) == [2, 6]
    assert sharing_with(2, there) == [6]
    assert sharing_with(3, there) == sharing_with(5, there) == sharing_with(9, there) == []
