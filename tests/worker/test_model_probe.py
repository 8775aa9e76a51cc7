"""What a worker learns of models by asking: those on disk, those loaded by others, and the size of one that is not configured."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from gpuqueue.domain.errors import BackendUnavailable
from gpuqueue.executors.ollama_client import OllamaClient
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import DEFAULT_MODELS, ModelSpec, OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S

SMALL = ModelSpec("small", 1_000_000_000, context_length=4096)


@pytest.fixture
def ollama_server(simulated_card: SimulatedCard) -> Iterator[OllamaSimulator]:
    with OllamaSimulator(simulated_card, models=(*DEFAULT_MODELS, SMALL)) as simulator:
        yield simulator


def test_the_models_on_disk_are_noted(ai, start_worker, until) -> None:
    start_worker(ai.gq)
    models = until(lambda: ai.gq.view().backends["ollama"].models)
    assert models == {"gemma4:e4b": 4_500_000_000, "nomic-embed-text:latest": 500_000_000, "small:latest": 1_000_000_000}


def test_a_model_that_nothing_is_known_of_is_sized_by_its_description(ai, start_worker, until) -> None:
    ai.gq.pause("ai-batch")
    job = ai.gq.ollama.generate("small", prompt="x", queue="ai-batch")
    start_worker(ai.gq)
    sized = until(lambda: 0 < job.refresh().record.demand_bytes < 5_000_000_000 and job.record.demand_bytes, "it is sized")
    assert 1_500_000_000 < sized < 2_500_000_000
    ai.gq.resume("ai-batch")
    job.result(timeout_s=DEADLINE_S)


def test_a_model_whose_description_did_not_come_is_asked_for_again(ai, start_worker, until, monkeypatch) -> None:
    answers, asked = OllamaClient.description, []

    def late(client: OllamaClient, model: str, *, timeout_s: float):
        asked.append(model)
        if len(asked) == 1:
            raise BackendUnavailable("it took longer than a second", backend="ollama")
        return answers(client, model, timeout_s=timeout_s)

    monkeypatch.setattr(OllamaClient, "description", late)
    ai.gq.pause("ai-batch")
    job = ai.gq.ollama.generate("small", prompt="x", queue="ai-batch")
    start_worker(ai.gq)
    until(lambda: 0 < job.refresh().record.demand_bytes < 5_000_000_000, "it is sized")
    assert asked == ["small", "small"]


def test_what_others_load_and_unload_is_seen_while_the_card_is_idle(ai, start_worker, until) -> None:
    start_worker(ai.gq)
    body = {"model": "small", "prompt": "x", "keep_alive": -1, "stream": False}
    httpx.post(f"{ai.ollama.url}/api/generate", json=body, timeout=DEADLINE_S).raise_for_status()
    until(lambda: [item.model for item in ai.gq.view().devices["gpu0"].residents] == ["small:latest"], "the loaded model is seen")
    httpx.post(f"{ai.ollama.url}/api/generate", json={"model": "small", "keep_alive": 0}, timeout=DEADLINE_S).raise_for_status()
    until(lambda: not ai.gq.view().devices["gpu0"].residents, "it is seen to be gone")


@pytest.mark.parametrize("burst", [False, True])
def test_a_job_for_a_missing_model_gets_its_fallback_however_late_the_first_list_comes(
    ai, gate, start_worker, until, monkeypatch, burst: bool
) -> None:
    listed = OllamaClient.models

    def late(client: OllamaClient, timeout_s: float):
        gate.pass_through()
        return listed(client, timeout_s=timeout_s)

    monkeypatch.setattr(OllamaClient, "models", late)
    plain = ai.gq.task(name="plain")(done)
    job = ai.gq.ollama.generate("absent:1b", prompt="x", queue="ai-batch", job={"fallback": ["small"], "max_attempts": 1})
    start_worker(ai.gq, burst=burst)
    gate.wait_reached()
    assert plain.enqueue().result(timeout_s=DEADLINE_S) == "done"
    gate.open()
    assert job.result(timeout_s=DEADLINE_S)["model"] == "small"


def test_a_list_that_fails_holds_no_job(ai, start_worker, monkeypatch) -> None:
    def fails(client: OllamaClient, timeout_s: float):
        raise BackendUnavailable("it took longer than a second", backend="ollama")

    monkeypatch.setattr(OllamaClient, "models", fails)
    start_worker(ai.gq)
    assert ai.gq.ollama.generate("small", prompt="x", queue="ai-batch").result(timeout_s=DEADLINE_S)["model"] == "small"


def done() -> str:
    return "done"
