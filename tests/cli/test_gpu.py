"""`gpuqueue gpu`: what the driver, Ollama and the queue say of a card, side by side, and where they disagree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import time_machine

from gpuqueue import GPUQueue, Worker
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.units import to_us
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.cli.conftest import CONFIGURATION

Run = Callable[..., Any]
GB = 10**9


@pytest.fixture
def card(simulator: OllamaSimulator) -> Iterator[SimulatedCard]:
    """The simulated Ollama's card, which this process reads through NVML."""
    with simulated_nvml(simulator.card):
        yield simulator.card


def load(ollama: OllamaSimulator, model: str = "gemma4:e4b") -> None:
    """Load a model as another program does, for ever."""
    httpx.post(f"{ollama.url}/api/generate", json={"model": model, "keep_alive": -1}, timeout=DEADLINE_S).raise_for_status()


def row(out: str, source: str) -> str:
    """The words of the table's row for a source."""
    (found,) = [line for line in out.splitlines() if line.startswith(source)]
    return " ".join(found.split())


def told(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("gpu", "--json").out)
    return found


def codes(run: Run) -> list[str]:
    return [item["what"] for item in told(run)["disagreements"]]


def test_an_idle_card_is_told_by_all_three_and_nothing_disagrees(card: SimulatedCard, run: Run) -> None:
    out = run("gpu").out
    assert re.search(r"^gpu0: .*2060", out)
    assert re.fullmatch(r"driver \S+ MB used of 8.59 GB, .* free, 0 % busy, 41 °C, 14 W \(now\)", row(out, "driver"))
    assert row(out, "ollama") == "ollama 0 B nothing is loaded (now)"
    assert row(out, "queue") == "queue 0 B reserved of a 5 GB budget, 3 GB margin"
    assert out.endswith("\nno disagreements\n")
    assert told(run)["disagreements"] == []


def test_a_job_that_runs_shows_its_memory_three_times_and_nothing_disagrees(folder: Path, run: Run, until: Any) -> None:
    with OllamaSimulator(speed=20) as ollama, simulated_nvml(ollama.card):
        (folder / "gpuqueue.toml").write_text(CONFIGURATION.format(url=ollama.url))
        with GPUQueue.from_config("gpuqueue.toml") as gq, Worker(gq) as worker:
            gq.ollama.generate("gemma4:e4b", prompt="x", queue="ai-batch", options={"num_predict": 100_000})
            until(lambda: any(item.output_tokens for item in gq.view().devices["gpu0"].reservations), "words")
            out = run("gpu").out
            found = told(run)
            status = run("status").out
            worker.stop(grace_s=0)
    assert row(out, "process") == "process 4001 4.5 GB ollama: Ollama's runner"
    assert row(out, "ollama") == "ollama 4.5 GB gemma4:e4b is loaded (now)"
    assert row(out, "job 1").startswith("job 1 4.5 GB ai-batch: running with gemma4:e4b")
    assert re.search(r"2060 SUPER: \S+ GB of 8.59 GB free, \d+ % busy, \d+ °C, \d+ W \(", status)
    assert "no disagreements" in out
    (device,) = found["devices"]
    assert device["processes"] == [{"pid": 4001, "name": "ollama", "used_bytes": 4_500_000_000, "owner": "ollama"}]
    assert (device["read_here"], device["residents_from"]) == (True, "ollama")
    assert [(item["job_id"], item["reserved_bytes"]) for item in device["reservations"]] == [(1, 4_500_000_000)]


def test_another_program_that_uses_the_card_or_its_ollama_is_named(
    card: SimulatedCard, simulator: OllamaSimulator, run: Run
) -> None:
    load(simulator)
    card.take(3_400_000_000)
    out = run("gpu").out
    assert row(out, "process 4000") == "process 4000 3.4 GB another program: another program"
    text = " ".join(out.partition("Disagreements\n")[2].split())
    assert "model not reserved: gemma4:e4b is loaded on gpu0 with 4.5 GB, but no job has reserved it" in text
    assert "→ another program uses this Ollama" in text
    assert "other programs hold 3.4 GB: another program (pid 4000, 3.4 GB); the margin" in text
    assert codes(run) == ["others_hold_memory", "budget_not_free", "model_not_reserved"]


@time_machine.travel("2026-07-01T12:00:00+00:00", tick=False)
def test_where_the_card_is_not_here_a_workers_reading_is_shown_with_its_age(simulator: OllamaSimulator, run: Run) -> None:
    configuration = Path("gpuqueue.toml")
    configuration.write_text(configuration.read_text().replace("[gpu]\n", '[gpu]\ndevice = "gpu9999"\n'))
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        at = gq.now() - timedelta(minutes=5)
        there = Reading(at, name="RTX", total_bytes=8 * GB, free_bytes=3 * GB)
        gq.store.backends.publish_reading("gpu9999", reading=there, residents=(Resident("seen:1b", 1, 1),), now_us=to_us(at))
    out = run("gpu").out
    assert row(out, "driver") == "driver 5 GB used of 8 GB, 3 GB free (read by a worker 5m ago)"
    assert "the driver does not list processes" in out
    assert "seen:1b" not in out, "what Ollama says now is newer"
    found = told(run)
    assert [item["what"] for item in found["disagreements"]] == ["reading_old"]
    assert (found["devices"][0]["read_here"], found["devices"][0]["processes"]) == (False, None)


def test_where_nobody_has_looked_nothing_is_said_of_what_is_loaded(configured: Path, run: Run) -> None:
    assert row(run("gpu").out, "ollama").startswith("ollama unknown no worker has checked yet what is loaded; nothing listens")


def test_where_ollama_cannot_be_asked_what_a_worker_saw_is_shown_and_why(configured: Path, run: Run) -> None:
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        gq.store.backends.publish_reading("gpu0", reading=None, residents=(Resident("seen:1b", GB, GB),), now_us=gq.now_us())
    said = row(run("gpu").out, "ollama")
    assert said.startswith("ollama 1 GB seen:1b is loaded (as last seen by a worker; ")
    assert "127.0.0.1:9" in said
    found = told(run)
    assert found["devices"][0]["residents_from"] == "worker"
    assert [found["backends"][0][key] for key in ("answers", "residents")] == [False, []]
    assert "127.0.0.1:9" in found["backends"][0]["error"]


def test_a_card_that_is_lost_says_so(card: SimulatedCard, run: Run) -> None:
    card.lost = True
    assert "LOST" in row(run("gpu").out, "driver")
    assert codes(run) == ["card_lost"]


def test_the_models_of_an_ollama_that_is_tied_to_no_card_of_several_are_told_beside_them(
    card: SimulatedCard, simulator: OllamaSimulator, folder: Path, run: Run
) -> None:
    text = (folder / "gpuqueue.toml").read_text()
    (folder / "gpuqueue.toml").write_text(text.replace("[gpu]", "[[gpu]]", 1) + '\n[[gpu]]\ndevice = 1\nbudget = "5GB"\n')
    load(simulator)
    out = run("gpu").out
    assert f"ollama at {simulator.url} (not tied to a device) has gemma4:e4b (4.5 GB) loaded" in out
    assert [item["residents"] for item in told(run)["devices"]] == [[], []]
    assert told(run)["backends"][0]["residents"][0]["model"] == "gemma4:e4b"


def test_doctor_warns_of_the_same_disagreements(card: SimulatedCard, simulator: OllamaSimulator, run: Run) -> None:
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        gq.counts()
    assert "agreement" in run("doctor").out
    load(simulator)
    found = {item["check"]: item for item in json.loads(run("doctor", "--json").out)["checks"]}
    assert found["model not reserved"]["level"] == "warn"
    assert "ollama stop gemma4:e4b" in found["model not reserved"]["mend"]
    assert "agreement" not in found
