"""Owns what many tests share beside the fixtures that `gpuqueue.testing` ships: workers, gates, and the scenario's queues."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker
from gpuqueue.config.initial import initial_toml
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.queues import QueueMaker
from gpuqueue.testing.waiting import DEADLINE_S, wait_until

pytest_plugins = ["tests.harness", "tests.sampling"]
GEMMA = "gemma4:e4b"
NOMIC = "nomic-embed-text"
# For a test that forks, which no code of gpuqueue does: whatever runs the tests may have threads of its own.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def fork() -> int:
    """Fork this process; a child that hangs ends after a while.

    The child may take over a mutex of SQLite's for ever, of a connection that another thread just closes. Where nobody else
    runs, that is what the garbage collector does in whichever thread it is called.
    """
    gc.disable()
    try:
        pid = os.fork()
    finally:
        gc.enable()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # this process interrupts its tests by it
        signal.alarm(int(DEADLINE_S))
    return pid


@pytest.fixture(scope="session", autouse=True)
def children_hear_ctrl_c() -> None:
    """Start children with SIGINT as a terminal gives it to them, also where the tests are a shell's job in the background.

    Such a job ignores SIGINT, and so would what it starts. A handler is not inherited; this one goes on ignoring it here.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)


@pytest.fixture(scope="session", autouse=True)
def clocks_show_utc() -> Iterator[None]:
    """Word moments in UTC wherever the tests run; one that is about zones chooses its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(condition, what)` waits for a condition and returns its value."""
    return wait_until


@pytest.fixture
def make_queue(make_gpuqueue: QueueMaker) -> QueueMaker:
    """Make queue objects, each call one more of the same file, of a configuration's text or of none; closed at the end."""
    return make_gpuqueue


@pytest.fixture
def gq(make_queue: Callable[..., GPUQueue]) -> GPUQueue:
    """A queue object on a file of its own."""
    return make_queue()


@pytest.fixture
def start_worker() -> Iterator[Callable[..., Worker]]:
    """Start workers in the background; those that still run are stopped at the end, without patience for their jobs."""
    started: list[Worker] = []

    def start(gq: GPUQueue, **options: Any) -> Worker:
        worker = Worker(gq, **options)
        started.append(worker)
        return worker.start()

    yield start
    for worker in started:
        worker.stop(grace_s=0)


class Gate:
    """A place where a task waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        """Called by the task."""
        self.reached.set()
        assert self.opened.wait(DEADLINE_S), "nobody opened the gate"

    def wait_reached(self) -> None:
        assert self.reached.wait(DEADLINE_S), "no task came to the gate"

    def open(self) -> None:
        self.opened.set()


@pytest.fixture
def make_gate() -> Iterator[Callable[[], Gate]]:
    """Make gates; all are open at the end, so that no thread is left behind."""
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate())
        return gates[-1]

    yield make
    for gate in gates:
        gate.open()


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    return make_gate()


@dataclass
class AI:
    """A card with its Ollama, and the queues of the configuration that `gpuqueue init` writes."""

    card: SimulatedCard
    ollama: OllamaSimulator
    toml: str
    make_queue: Callable[..., GPUQueue]
    gq: GPUQueue

    def realtime(self, prompt: str = "now", **options: Any) -> Any:
        return self.gq.ollama.generate(GEMMA, prompt=prompt, queue="ai-realtime", options={"num_predict": 5}, **options)

    def batch(self, prompt: str = "later", tokens: int = 5, **options: Any) -> Any:
        return self.gq.ollama.generate(GEMMA, prompt=prompt, queue="ai-batch", options={"num_predict": tokens}, **options)

    def embed(self, queue: str = "ai-batch") -> Any:
        return self.gq.ollama.embed(NOMIC, input="text", queue=queue)


def ai_toml(url: str, *, pause: str = "[]") -> str:
    """The configuration that init writes, without its window; Ollama may be slow to answer, but is asked often."""
    text = initial_toml(
        timezone="UTC", budget="5GB", margin="3GB", model=GEMMA, model_vram="4.5GB", ollama_url=url, database="gpuqueue.db"
    )
    text = text.replace('pause = ["09:00-18:00"]', f"pause = {pause}")
    patience = 'connect = "2m"\nprobe_every = "100ms"\nsettle = "30ms"\nrelease = "5s"\n'
    return text.replace("[ollama]\n", f"[ollama]\n{patience}").replace('database = "gpuqueue.db"\n', "")


@pytest.fixture
def toml_of() -> Callable[..., str]:
    """`toml_of(url, pause=…)` words the AI queues' configuration."""
    return ai_toml


@pytest.fixture
def ai(make_queue: QueueMaker, simulated_card: SimulatedCard, ollama_server: OllamaSimulator) -> AI:
    """The scenario's card, Ollama and queues, thirty times as fast; the card is read through NVML."""
    toml = ai_toml(ollama_server.url)
    return AI(simulated_card, ollama_server, toml, make_queue, make_queue(toml))
