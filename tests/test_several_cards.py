"""Two cards with an Ollama each: a job runs where there is room, on the card that it names, and beside one that is away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gpuqueue import GPUQueue
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from gpuqueue.testing.waiting import wait_until as until

GEMMA = "gemma4:e4b"
TOML = """
placement = "{placement}"

[[gpu]]
budget = "5GB"

[[gpu]]
budget = "5GB"
labels = ["fast"]

[[ollama]]
name = "desk"
url = "{desk}"
device = "gpu0"
connect = "2m"
probe_every = "100ms"

[[ollama]]
name = "tower"
url = "{tower}"
device = "gpu1"
connect = "2m"
probe_every = "100ms"

[models."gemma4:e4b"]
vram = "4.5GB"

[queues.ai]
gpu = true

[queues.desk-only]
gpu = true
backend = "desk"
"""


@dataclass
class Two:
    desk: OllamaSimulator
    tower: OllamaSimulator
    gq: GPUQueue

    def generate(self, prompt: str = "x", tokens: int = 5, queue: str = "ai", **job: Any) -> Any:
        return self.gq.ollama.generate(GEMMA, prompt=prompt, queue=queue, options={"num_predict": tokens}, job=job)

    def running_on(self) -> set[str]:
        return {item.device for device in self.gq.view().devices.values() for item in device.reservations if item.running}


@pytest.fixture(params=["pack"])
def two(make_queue, request) -> Iterator[Two]:
    cards = [SimulatedCard(speed=30), SimulatedCard(speed=30)]
    with OllamaSimulator(cards[0]) as desk, OllamaSimulator(cards[1]) as tower, simulated_nvml(cards):
        toml = TOML.format(placement=request.param, desk=desk.url, tower=tower.url)
        yield Two(desk, tower, make_queue(toml))


def overlaps(two: Two) -> list[int]:
    return [ollama.card.report()["overlaps"] for ollama in (two.desk, two.tower)]


def loads(two: Two) -> list[int]:
    return [ollama.card.report()["loads"] for ollama in (two.desk, two.tower)]


def test_two_jobs_run_at_once_each_on_a_card_of_its_own(two: Two, start_worker) -> None:
    jobs = [two.generate(f"n{number}", tokens=400) for number in range(2)]
    start_worker(two.gq)
    until(lambda: two.running_on() == {"gpu0", "gpu1"}, "both cards work")
    answers = [job.result(timeout_s=DEADLINE_S)["text"] for job in jobs]
    assert answers[0] != answers[1]
    assert overlaps(two) == [0, 0]
    assert loads(two) == [1, 1]


@pytest.mark.parametrize("wanted", ["gpu1", "fast"])
def test_a_job_runs_on_the_card_that_it_names(two: Two, start_worker, wanted: str) -> None:
    job = two.generate(device=wanted)
    start_worker(two.gq)
    job.result(timeout_s=DEADLINE_S)
    assert loads(two) == [0, 1]


def test_a_queue_of_one_ollama_uses_no_other(two: Two, start_worker) -> None:
    jobs = [two.generate(queue="desk-only", tokens=100) for _ in range(3)]
    start_worker(two.gq)
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    assert loads(two)[1] == 0
    wrong = two.generate(queue="desk-only", device="gpu1")
    until(lambda: "no_device" in str(wrong.explain()), "it is said")
    assert "no Ollama of queue 'desk-only' runs on gpu1" in str(wrong.explain())


def test_while_one_ollama_is_away_the_other_card_works_for_both(two: Two, start_worker) -> None:
    two.desk.go_away()
    start_worker(two.gq)
    until(lambda: not two.gq.view().backends["desk"].available, "the breaker opens")
    for number in range(3):
        two.generate(f"n{number}").result(timeout_s=DEADLINE_S)
    assert two.gq.holds()["ai"] == []
    bound = two.generate(device="gpu0")
    until(lambda: "unavailable: desk: " in str(bound.explain()), "the job of the absent one waits and says why")
    assert [hold.reason for hold in two.gq.holds()["desk-only"]] == ["unavailable"]
    two.desk.come_back()
    bound.result(timeout_s=DEADLINE_S)


@pytest.mark.parametrize("two", ["spread"], indirect=True)
def test_where_one_ollama_is_away_the_job_on_the_other_card_makes_room(two: Two, start_worker) -> None:
    two.gq.queue("low", gpu=True, backend="ollama", yields_to=("ai",), min_run_s=0, nearly_done_s=0)
    two.desk.go_away()
    start_worker(two.gq)
    until(lambda: not two.gq.view().backends["desk"].available, "the breaker opens")
    low = two.generate("low", tokens=1000, queue="low")
    next(iter(low.stream(timeout_s=DEADLINE_S)))
    two.generate("high").result(timeout_s=DEADLINE_S)
    assert low.refresh().record.preemptions == 1, "the empty card is of no use, so the other one is cleared"
    low.cancel()


def test_a_job_for_one_card_does_not_stop_a_job_on_the_other(two: Two, start_worker) -> None:
    two.gq.queue("low", gpu=True, backend="ollama", yields_to=("ai",), min_run_s=0, nearly_done_s=0)
    low = two.gq.ollama.generate(
        GEMMA, prompt="x", queue="low", options={"num_predict": 3000}, job={"device": "gpu0", "vram": "4.5GB"}
    )
    start_worker(two.gq)
    until(lambda: two.running_on() == {"gpu0"}, "the batch job runs")
    two.generate(device="gpu1").result(timeout_s=DEADLINE_S)
    assert low.refresh().record.preemptions == 0
    two.generate(device="gpu0").result(timeout_s=DEADLINE_S)
    assert low.refresh().record.preemptions == 1
    low.cancel()
