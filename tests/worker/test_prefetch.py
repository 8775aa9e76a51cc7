"""While a job computes, the next model's file is read into the page cache; not where memory is short, and not for longer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuqueue.devices import host_memory
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import GEMMA4_E4B, NOMIC_EMBED_TEXT, OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from gpuqueue.worker import prefetch
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.page_cache import CHUNK_BYTES, is_supported
from gpuqueue.worker.service_thread import MOST_FAILURES
from tests.conftest import AI, GEMMA
from tests.pages import cached, evict

pytestmark = pytest.mark.skipif(not is_supported, reason="this system gives no advice about its page cache")
LONG = 100_000  # tokens
FAR_TOO_MUCH = 10**18
THREAD = "gpuqueue-prefetch"


@pytest.fixture
def ollama_server(simulated_card: SimulatedCard, tmp_path: Path) -> Iterator[OllamaSimulator]:
    models = [replace(spec, folder=str(tmp_path)) for spec in (GEMMA4_E4B, NOMIC_EMBED_TEXT)]
    with OllamaSimulator(simulated_card, models=models) as simulator:
        yield simulator


@pytest.fixture
def nomic(tmp_path: Path) -> Path:
    """The file of nomic-embed-text, on the disk only."""
    path = Path(replace(NOMIC_EMBED_TEXT, folder=str(tmp_path)).file)
    path.write_bytes(os.urandom(6 * CHUNK_BYTES))
    evict(path)
    if cached(path):
        pytest.skip("this file system keeps its files in memory")
    return path


@pytest.fixture(autouse=True)
def memory_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any machine have enough memory, and look often."""
    monkeypatch.setattr(host_memory, "PROMPT_CACHE_BYTES", 0)
    monkeypatch.setattr(prefetch, "EVERY_S", 0.01)


def was_asked(ai: AI) -> bool:
    return any(request.path == "/api/show" for request in ai.ollama.served)


def is_running() -> bool:
    return any(thread.name == THREAD for thread in threading.enumerate())


def test_the_next_models_file_is_read_while_a_job_computes(ai, nomic, start_worker, until) -> None:
    running, embedding = ai.batch(tokens=LONG), ai.embed()
    start_worker(ai.gq)
    until(lambda: cached(nomic) == 1, "the file is in the page cache")
    assert running.refresh().record.state == "running"
    running.cancel()
    embedding.result(timeout_s=DEADLINE_S)


def test_nothing_is_read_where_memory_is_short(ai, nomic, start_worker, until, monkeypatch) -> None:
    monkeypatch.setattr(host_memory, "PROMPT_CACHE_BYTES", FAR_TOO_MUCH)
    running, embedding = ai.batch(tokens=LONG), ai.embed()
    worker = start_worker(ai.gq)
    until(lambda: was_asked(ai), "the worker knows the file")
    running.cancel()
    embedding.result(timeout_s=DEADLINE_S)
    worker.stop()
    assert cached(nomic) == 0


def test_nothing_is_read_where_it_cannot_be_known_how_much_memory_there_is(ai, nomic, start_worker, until, monkeypatch) -> None:
    monkeypatch.setattr(host_memory, "PROC", nomic.parent / "nowhere")
    running = ai.batch(tokens=LONG)
    ai.embed()
    worker = start_worker(ai.gq)
    until(lambda: was_asked(ai), "the worker knows the file")
    running.cancel()
    worker.stop()
    assert cached(nomic) == 0


def test_reading_ends_when_the_job_does(ai, nomic, make_gate, start_worker, monkeypatch) -> None:
    gates, asked = [make_gate(), make_gate()], []

    def available_bytes() -> int:
        asked.append(1)
        if len(asked) <= len(gates):
            gates[len(asked) - 1].pass_through()
        return FAR_TOO_MUCH

    monkeypatch.setattr(host_memory, "available_bytes", available_bytes)
    monkeypatch.setattr(prefetch, "ROUND_S", DEADLINE_S)
    running, embedding = ai.batch(tokens=LONG), ai.embed()
    worker = start_worker(ai.gq)
    gates[0].open()
    gates[1].wait_reached()
    running.cancel()
    embedding.result(timeout_s=DEADLINE_S)
    gates[1].open()
    worker.stop()
    assert len(asked) == 2, "no third chunk was read"


def test_nothing_is_read_while_the_running_jobs_model_may_still_load(ai, nomic, start_worker, until, monkeypatch) -> None:
    rounds, read_on = [], prefetch.Prefetch._read_on

    def noted(thread: prefetch.Prefetch, device: str) -> None:
        read_on(thread, device)
        rounds.append(running.refresh().record.state)

    monkeypatch.setattr(prefetch.Prefetch, "_read_on", noted)
    ai.ollama.faults.add("hang")
    running, embedding = ai.batch(), ai.embed()
    worker = start_worker(ai.gq)
    until(lambda: rounds.count("running") > 100, "it would have been read by now")
    running.cancel()
    embedding.result(timeout_s=DEADLINE_S)
    worker.stop()
    assert not was_asked(ai)


def test_the_model_of_the_running_job_is_not_read(ai, start_worker, until, monkeypatch) -> None:
    found, next_models = [], Dispatcher.next_models

    def noted(dispatcher: Dispatcher, device: str, job_id: int) -> list[str]:
        found.append((threading.current_thread().name, next_models(dispatcher, device, job_id)))
        return found[-1][1]

    monkeypatch.setattr(Dispatcher, "next_models", noted)
    running, next_one = ai.batch(tokens=LONG), ai.batch()
    worker = start_worker(ai.gq)
    until(lambda: found.count((THREAD, [GEMMA])) > 1, "a round has ended")
    running.cancel()
    next_one.result(timeout_s=DEADLINE_S)
    worker.stop()
    assert not was_asked(ai)


def test_a_file_that_is_not_there_hinders_nothing(ai, start_worker, until) -> None:
    running, embedding = ai.batch(tokens=LONG), ai.embed()
    start_worker(ai.gq)
    until(lambda: was_asked(ai), "the worker looks for the file")
    running.cancel()
    embedding.result(timeout_s=DEADLINE_S)
    assert is_running()


def test_a_failure_in_it_hinders_no_job_and_does_not_end_it(ai, start_worker, until, monkeypatch) -> None:
    failures, next_models = [], Dispatcher.next_models

    def fails_there(dispatcher: Dispatcher, device: str, job_id: int) -> list[str]:
        if threading.current_thread().name == THREAD:
            failures.append(device)
            raise RuntimeError("a plugin's answer was wrong")
        return next_models(dispatcher, device, job_id)

    monkeypatch.setattr(Dispatcher, "next_models", fails_there)
    running, embedding = ai.batch(tokens=LONG), ai.embed()
    start_worker(ai.gq)
    until(lambda: len(failures) > 2 * MOST_FAILURES, "it failed often")
    running.cancel()
    embedding.result(timeout_s=DEADLINE_S)
    assert is_running()


def test_it_is_shown_as_a_part_of_the_worker(ai, make_queue, start_worker, until) -> None:
    gq = make_queue(f'{ai.toml}\n[worker]\nlease = "3s"\n')
    start_worker(gq)
    until(lambda: "prefetch" in [part.name for worker in gq.view().workers for part in worker.parts], "its first heartbeat")


@pytest.mark.parametrize("line", ["prefetch = false", 'url = "http://192.0.2.1:11434"'])
def test_nothing_runs_where_it_is_switched_off_or_ollama_is_elsewhere(ai, make_queue, start_worker, line: str) -> None:
    kept = [text for text in ai.toml.splitlines() if not (text.startswith("url =") and line.startswith("url"))]
    start_worker(make_queue("\n".join(kept).replace("[ollama]", f"[ollama]\n{line}")))
    assert not is_running()
