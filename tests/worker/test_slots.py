"""A card whose loaded model serves two jobs at once: both write at the same time, and their memory is given back exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gpuqueue import GPUQueue, JobHandle, State
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.queues import QueueMaker
from gpuqueue.testing.waiting import DEADLINE_S

GEMMA, NOMIC = "gemma4:e4b", "nomic-embed-text"
LONG = {"num_predict": 100_000}

Until = Callable[..., object]


@pytest.fixture
def ollama_server(simulated_card: SimulatedCard) -> Iterator[OllamaSimulator]:
    with OllamaSimulator(simulated_card, num_parallel=2) as simulator:
        yield simulator


@pytest.fixture
def slots(make_queue: QueueMaker, ollama_server: OllamaSimulator, toml_of: Callable[..., str]) -> GPUQueue:
    text = toml_of(ollama_server.url).replace("max_models = 1", "max_models = 1\nslots = 2").replace("concurrency = 1", "")
    return make_queue(text)


def ask(gq: GPUQueue, queue: str = "ai-batch", model: str = GEMMA, tokens: int = 100_000) -> JobHandle:
    return gq.ollama.generate(model, prompt="x", queue=queue, options={"num_predict": tokens})


def writes(job: JobHandle) -> bool:
    return job.refresh().state is State.RUNNING and job.record.output_tokens > 0


def test_a_worker_runs_two_jobs_of_one_model_at_once_and_loads_it_once(
    slots: GPUQueue, simulated_card: SimulatedCard, ollama_server: OllamaSimulator, start_worker, until: Until
) -> None:
    first, second, third = ask(slots), ask(slots), ask(slots, tokens=3)
    start_worker(slots)
    until(lambda: writes(first) and writes(second), "both write")
    assert len(simulated_card.computing_now) == 2
    device = slots.view().devices["gpu0"]
    assert device.reserved_bytes == 4_500_000_000
    assert "device_busy" in str(third.explain())
    first.cancel()
    assert third.result(timeout_s=DEADLINE_S)["output_tokens"] == 3
    assert writes(second), "its model was not unloaded from under it"
    assert simulated_card.load_count == 1
    second.cancel()
    until(lambda: not slots.view().devices["gpu0"].reservations, "the memory is given back")
    until(lambda: simulated_card.processes() == (), "the model is unloaded")
    assert simulated_card.overlap_count == 0


def test_a_model_of_one_slot_runs_one_job_at_a_time(
    slots: GPUQueue, simulated_card: SimulatedCard, ollama_server: OllamaSimulator, start_worker, until: Until
) -> None:
    slots.pause("ai-batch")
    jobs = [slots.ollama.embed(NOMIC, input="text", queue="ai-batch") for _ in range(2)]
    start_worker(slots)
    until(lambda: any(kind == "one_at_once" for kind, _ in slots.view().estimates), "the worker has asked for its family")
    ollama_server.faults.add("hang", model=NOMIC)
    slots.resume("ai-batch")
    until(lambda: not ollama_server.faults.waiting(), "one embeds")
    assert [job.refresh().state for job in jobs] == [State.RUNNING, State.AVAILABLE]
    assert f"{NOMIC} runs at most 1 job at once" in str(until(lambda: "parallel" in str(jobs[1].explain()) and jobs[1].explain()))
    jobs[0].cancel()
    assert jobs[1].result(timeout_s=DEADLINE_S)


def test_a_person_takes_one_of_two_slots_of_the_same_model(
    slots: GPUQueue, simulated_card: SimulatedCard, start_worker, until: Until
) -> None:
    jobs = [ask(slots), ask(slots)]
    start_worker(slots)
    until(lambda: all(map(writes, jobs)), "both write")
    assert ask(slots, "ai-realtime", tokens=5).result(timeout_s=DEADLINE_S)["output_tokens"] == 5
    assert [job.refresh().record.preemptions for job in jobs] in ([0, 1], [1, 0])
    assert simulated_card.load_count == 1
    for job in jobs:
        job.cancel()


def test_a_person_for_another_model_takes_both(
    slots: GPUQueue, simulated_card: SimulatedCard, start_worker, until: Until
) -> None:
    jobs = [ask(slots), ask(slots)]
    start_worker(slots)
    until(lambda: all(map(writes, jobs)), "both write")
    assert slots.ollama.embed(NOMIC, input="text", queue="ai-realtime").result(timeout_s=DEADLINE_S)
    assert [job.refresh().record.preemptions for job in jobs] == [1, 1]
    assert simulated_card.peak_bytes <= 5 * 10**9
    for job in jobs:
        job.cancel()
