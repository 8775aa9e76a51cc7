"""Two workers run a job of one loaded model each: the death of one neither unloads the model nor frees its memory twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuqueue import GPUQueue, JobHandle, State
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from tests.conftest import wait_until as until
from tests.crash.test_card_safety import the_card_was_safe
from tests.history import History
from tests.processes import started

GEMMA = "gemma4:e4b"
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def ollama() -> Iterator[OllamaSimulator]:
    with OllamaSimulator(SimulatedCard(speed=8), num_parallel=2) as simulator:
        yield simulator


@pytest.fixture
def gq(tmp_path: Path, ollama: OllamaSimulator, toml_of: Callable[..., str]) -> Iterator[GPUQueue]:
    text = toml_of(ollama.url).replace("max_models = 1", "max_models = 1\nslots = 2")
    text = text.replace('yields_to = ["ai-realtime"]\n', "")
    (tmp_path / "gpuqueue.toml").write_text(f'{text}\n[worker]\nlease = "5s"\nthreads = 2\n')
    with GPUQueue.from_config(tmp_path / "gpuqueue.toml") as queue:
        yield queue


@pytest.fixture
def start(gq: GPUQueue, ollama: OllamaSimulator) -> Iterator[Start]:
    """Start a worker process for one queue."""
    with ExitStack() as leaving:
        command = [sys.executable, "-m", "gpuqueue.simulators.nvml", "--card", ollama.url, "-m", "gpuqueue"]
        command += ["--config", str(gq.config.path), "worker", "--queue"]
        silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        yield lambda queue: leaving.enter_context(started([*command, queue], **silent))


def writes(job: JobHandle) -> bool:
    return job.refresh().state is State.RUNNING and job.record.output_tokens > 0


@pytest.mark.parametrize("first", ["ai-batch", "ai-realtime"])
def test_the_model_stays_for_the_job_of_the_worker_that_lives(
    gq: GPUQueue, ollama: OllamaSimulator, start: Start, first: str
) -> None:
    history = History(gq)
    second = "ai-realtime" if first == "ai-batch" else "ai-batch"
    long = {"num_predict": 100_000}
    victim = start(first)
    lost = gq.ollama.generate(GEMMA, prompt="x", queue=first, options=long)
    until(lambda: writes(lost), "the first worker's job loads the model and writes")
    start(second)
    other = gq.ollama.generate(GEMMA, prompt="y", queue=second, options=long)
    until(lambda: writes(other), "the second worker's job writes too")
    lease = lost.record.lease
    victim.kill()
    victim.wait()
    until(lambda: lost.refresh().record.lease > lease, "the dead worker's job is rescued")
    until(lambda: lost.refresh().record.device is None, "and cleaned up")
    assert writes(other)
    assert ollama.card.load_count == 1
    assert ollama.card.release_log == ()
    assert gq.view().devices["gpu0"].reserved_bytes == other.record.reserved_bytes
    lost.cancel()
    other.cancel()
    until(lambda: not any(device.reservations for device in gq.view().devices.values()), "the memory is given back")
    assert ollama.card.load_count == 1
    the_card_was_safe(gq, ollama, history, ())
