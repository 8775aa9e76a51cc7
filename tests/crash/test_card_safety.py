"""The card itself witnesses that no two GPU jobs overlap and no memory is overcommitted, whatever happens to the workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gpuqueue import GPUQueue, JobHandle, State
from gpuqueue.config.initial import initial_toml
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator, expected_answer
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import wait_until as until
from tests.crash.stopping import go_on, stop_outside_a_write
from tests.history import History
from tests.processes import started

BUDGET_BYTES = 5_000_000_000


@pytest.fixture
def ollama() -> Iterator[OllamaSimulator]:
    with OllamaSimulator(SimulatedCard(speed=8)) as simulator:
        yield simulator


@pytest.fixture
def gq(tmp_path: Path, ollama: OllamaSimulator) -> Iterator[GPUQueue]:
    text = initial_toml(timezone="UTC", budget="5GB", margin="3GB", model="gemma4:e4b", model_vram="4.5GB", ollama_url=ollama.url)
    text = text.replace('pause = ["09:00-18:00"]\n', "").replace("[ollama]", '[ollama]\nconnect = "2m"\nprobe_every = "200ms"')
    (tmp_path / "gpuqueue.toml").write_text(f'{text}\n[worker]\nlease = "5s"\nthreads = 2\nmax_crashes = 10\n')
    with GPUQueue.from_config(tmp_path / "gpuqueue.toml") as queue:
        yield queue


@pytest.fixture
def history(gq: GPUQueue) -> History:
    return History(gq)


@contextmanager
def workers(gq: GPUQueue, ollama: OllamaSimulator, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run worker processes that read the simulated card through NVML."""
    command = [sys.executable, "-m", "gpuqueue.simulators.nvml", "--card", ollama.url, "-m", "gpuqueue"]
    command += ["--config", str(gq.config.path), "worker"]
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with ExitStack() as leaving:
        processes = [leaving.enter_context(started(command, **silent)) for _ in range(count)]
        until(lambda: len(gq.workers()) == count, f"{count} workers run")
        yield processes


def enqueue(gq: GPUQueue, count: int) -> dict[int, str]:
    """Enqueue jobs of both GPU queues; returns {job id: prompt}."""
    prompts = {}
    for number in range(count):
        prompt = f"revise paragraph {number}"
        queue = "ai-realtime" if number % 4 == 3 else "ai-batch"
        prompts[gq.ollama.generate("gemma4:e4b", prompt=prompt, queue=queue, options={"num_predict": 60}).id] = prompt
    return prompts


def all_answered(gq: GPUQueue, prompts: dict[int, str]) -> None:
    for job_id, prompt in prompts.items():
        assert gq.job(job_id).result(timeout_s=DEADLINE_S)["text"] == expected_answer("gemma4:e4b", prompt, num_predict=60)


def the_card_was_safe(gq: GPUQueue, ollama: OllamaSimulator, history: History, completed: Iterable[int]) -> None:
    until(lambda: not any(device.reservations for device in gq.view().devices.values()), "every reservation is given back")
    history.check(completed=completed)
    report = ollama.card.report()
    assert report["overlaps"] == 0
    assert report["peak_bytes"] <= BUDGET_BYTES
    until(lambda: ollama.card.used_bytes < 10**9, "the card's memory is back")


def running(gq: GPUQueue) -> list[JobHandle]:
    return gq.jobs(state=State.RUNNING)


def stopped_while_it_runs_a_job(
    gq: GPUQueue, processes: list[subprocess.Popen[str]]
) -> tuple[JobHandle, subprocess.Popen[str]] | None:
    """Stop the worker of a running job; None when no job runs, or it finished before its worker was stopped."""
    for job in running(gq):
        (victim,) = [process for process in processes if f"-{process.pid}-" in (job.record.worker_id or "")]
        stop_outside_a_write(victim, gq)
        if job.refresh().state is State.RUNNING:
            return job, victim
        go_on(victim)
    return None


def test_four_workers_racing_for_one_card_never_overlap(gq: GPUQueue, ollama: OllamaSimulator, history: History) -> None:
    with workers(gq, ollama, 4):
        prompts = enqueue(gq, 16)
        all_answered(gq, prompts)
        the_card_was_safe(gq, ollama, history, prompts)


def test_a_worker_killed_while_it_generates_leaves_no_job_no_memory_and_no_overlap(
    gq: GPUQueue, ollama: OllamaSimulator, history: History
) -> None:
    with workers(gq, ollama, 3) as processes:
        prompts = enqueue(gq, 12)
        for _ in range(2):
            until(lambda: bool(running(gq)), "a job runs")
            worker_id = running(gq)[0].record.worker_id or ""
            victims = [process for process in processes if f"-{process.pid}-" in worker_id]
            for process in victims:
                process.kill()
                process.wait()
        all_answered(gq, prompts)
        the_card_was_safe(gq, ollama, history, prompts)


def test_a_worker_stopped_for_two_leases_finishes_nothing_twice(gq: GPUQueue, ollama: OllamaSimulator, history: History) -> None:
    with workers(gq, ollama, 2) as processes:
        prompts = enqueue(gq, 8)
        job, victim = until(lambda: stopped_while_it_runs_a_job(gq, processes), "a worker is stopped while it runs a job")
        lease = job.record.lease
        until(lambda: job.refresh().record.lease > lease, "the job is rescued, its lease having ended")
        all_answered(gq, prompts)
        go_on(victim)
        # It notices that it was given up, and begins anew under another id.
        until(lambda: len(gq.workers()) == 2, "the stopped worker works again")
        later = enqueue(gq, 4)
        all_answered(gq, {**prompts, **later})
        the_card_was_safe(gq, ollama, history, {**prompts, **later})


def test_batch_goes_on_when_the_worker_of_a_realtime_job_dies(gq: GPUQueue, ollama: OllamaSimulator, history: History) -> None:
    with workers(gq, ollama, 2) as processes:
        job = gq.ollama.generate("gemma4:e4b", prompt="for a person", queue="ai-realtime", options={"num_predict": 2000})
        until(lambda: job.refresh().state is State.RUNNING, "the person's job runs")
        batch = gq.ollama.generate("gemma4:e4b", prompt="batch", queue="ai-batch", options={"num_predict": 20})
        (victim,) = [process for process in processes if f"-{process.pid}-" in (job.record.worker_id or "")]
        victim.kill()
        job.cancel()
        assert batch.result(timeout_s=DEADLINE_S)["text"] == expected_answer("gemma4:e4b", "batch", num_predict=20)
        until(lambda: job.refresh().finished_at, "the person's job is cancelled, or was too quick")
        the_card_was_safe(gq, ollama, history, [batch.id])
