"""Owns one run: the simulated card, and who brings a trace's jobs to it; measures nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.loading import Config
from gpuqueue.simulators.card import Computation, Release, SimulatedCard
from gpuqueue.simulators.ollama import OllamaSimulator, Served
from tests.benchmarks.scheduling.real_time.schemes import Scheme
from tests.benchmarks.scheduling.real_time.traces import BATCH, MODELS, NUM_CTX, REALTIME, Arrival, Trace

ROOT = Path(__file__).parents[4]
DIRECT_CLIENTS = 4  # of the batch application, as a thread pool of usual size has them
PATIENCE = 3.0  # times the trace's length, until a run is given up
STOP_S = 10.0
LOOK_EVERY_S = 0.005
Job = tuple[int, Arrival]


@dataclass(frozen=True, slots=True)
class Recording:
    """What the simulators recorded of one run, as they have it.

    began_s: the trace's beginning on the card's clock. other_cores: how much of this machine other work took meanwhile, in
    cores; None where that cannot be told.
    """

    began_s: float
    served: tuple[Served, ...]
    computed: tuple[Computation, ...]
    released: tuple[Release, ...]
    peak_bytes: int
    overlap_count: int
    other_cores: float | None = None


class RunFailed(Exception):
    """A run did not come to its end; the message says what is left, and what the worker printed last."""


def record(scheme: Scheme, trace: Trace, *, speed: float) -> Recording:
    """Run a trace under a scheme until its last job is done. Raises: RunFailed."""
    played = trace if scheme.has_batch else trace.only(REALTIME)
    jobs = list(enumerate(played.arrivals))
    machine = _Machine()
    with ExitStack() as leaving:
        folder = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="gpuqueue-scheduling-")))
        card = SimulatedCard(speed=speed, seed=1)
        ollama = leaving.enter_context(OllamaSimulator(card, MODELS, seed=1))
        deadline_s = PATIENCE * max(played.length_s, played.work_s) / speed + 30.0
        if scheme.runner == "worker":
            began_s = _by_worker(leaving, folder, scheme, trace, jobs, ollama, speed, deadline_s)
        else:
            with _client(ollama) as client:
                for model in trace.models:  # read from the disk once, as for the others
                    client.load(model)
                    _until(lambda: card.used_bytes == card.reserved_bytes)
                began_s = time.monotonic()
                clock = _Clock(began_s, speed)
                if scheme.runner == "direct":
                    _direct(client, jobs, clock)
                else:
                    _original(client, card, jobs, clock)
        log, released, report = card.compute_log, card.release_log, card.report()
    # The worker has ended by now, so what it took counts as this run's own.
    return Recording(
        began_s, ollama.served, log, released, int(report["peak_bytes"]), int(report["overlaps"]), machine.other_cores()
    )


def messages(number: int, arrival: Arrival) -> list[dict[str, str]]:
    """Word a job's request: as many tokens as its trace says, and by its first word found again in what was served."""
    opening = f"job{number} "
    return [{"role": "user", "content": opening + "x" * max(1, 4 * arrival.prompt_tokens - len("user: ") - len(opening))}]


def job_number(served: Served) -> int | None:
    """Say which job a request belonged to; None when to none."""
    body = served.body if isinstance(served.body, dict) else {}
    # What continues an answer may be a raw prompt, rendered from the messages.
    said = body["messages"][0]["content"] if body.get("messages") else body.get("prompt", "")
    found = re.search(r"\bjob(\d+) x", str(said))
    return int(found[1]) if found else None


def is_answered(served: Served) -> bool:
    """Say whether a request was for an answer, and not for a look at its prompt."""
    return not (isinstance(served.body, dict) and served.body.get("_debug_render_only"))


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(LOOK_EVERY_S)


class _Machine:
    """How busy the machine is beside this run."""

    def __init__(self) -> None:
        self._began_s, self._before = time.monotonic(), self._others_s()

    def other_cores(self) -> float | None:
        now = self._others_s()
        return None if now is None or self._before is None else max(0.0, now - self._before) / (time.monotonic() - self._began_s)

    def _others_s(self) -> float | None:
        try:
            fields = Path("/proc/stat").read_text().split()
        except OSError:
            return None
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[1:9])
        mine = os.times()
        busy_s = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy_s - mine.user - mine.system - mine.children_user - mine.children_system


class _Clock:
    """The trace's time."""

    def __init__(self, began_s: float, speed: float) -> None:
        self._began_s = began_s
        self._speed = speed

    def wait_for(self, at_s: float) -> None:
        left_s = self._began_s + at_s / self._speed - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)


# With a worker


def _by_worker(
    leaving: ExitStack,
    folder: Path,
    scheme: Scheme,
    trace: Trace,
    jobs: Sequence[Job],
    ollama: OllamaSimulator,
    speed: float,
    deadline_s: float,
) -> float:
    file = folder / "gpuqueue.toml"
    file.write_text(scheme.toml(trace, url=ollama.url, speed=speed), encoding="utf-8")
    gq = leaving.enter_context(GPUQueue(config=Config.load(file, environ={}), discover_plugins=False))
    log = folder / "worker.log"
    worker = leaving.enter_context(_worker(file, log, ollama))
    first = scheme.queue or REALTIME
    try:
        _until(lambda: gq.view().queues[first].served or worker.poll() is not None)
        for model in trace.models:  # read from the disk once; and the worker learns how fast the model is
            for _ in range(2):
                _enqueue(gq, first, model, [{"role": "user", "content": "warm up"}], 55).result(timeout_s=60)
        began_s = time.monotonic()
        clock = _Clock(began_s, speed)
        waiting = []
        for number, arrival in jobs:
            clock.wait_for(arrival.at_s)
            queue = scheme.queue or arrival.queue
            waiting.append(_enqueue(gq, queue, arrival.model, messages(number, arrival), arrival.output_tokens))
        for handle in waiting:
            handle.result(timeout_s=max(1.0, began_s + deadline_s - time.monotonic()))
    except Exception as error:
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RunFailed(f"{scheme.title} on {trace.name}: {error!r}; {gq.counts()}\n{said} (exit {worker.poll()})") from error
    return began_s


def _enqueue(gq: GPUQueue, queue: str, model: str, said: list[dict[str, str]], tokens: int) -> JobHandle:
    return gq.ollama.chat(model, messages=said, queue=queue, think=False, options={"num_predict": tokens})


@contextmanager
def _worker(file: Path, log: Path, ollama: OllamaSimulator) -> Iterator[subprocess.Popen[bytes]]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GPUQUEUE_") and key != "OLLAMA_HOST"}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "gpuqueue.simulators.nvml", "--card", ollama.control_url, "-m", "gpuqueue"]
    with log.open("wb") as printed:
        worker = subprocess.Popen(
            [*command, "--config", str(file), "worker"], stdin=subprocess.DEVNULL, stdout=printed, stderr=printed, env=environ
        )
    try:
        yield worker
    finally:
        for end in (worker.terminate, worker.terminate, worker.kill):
            if worker.poll() is None:
                end()
                try:
                    worker.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    continue


# Without one


class _Client:
    """Calls Ollama as an application does."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def load(self, model: str) -> None:
        self._post({"model": model, "messages": [{"role": "user", "content": "warm up"}], "options": self._options(1)})
        self.unload(model)

    def answer(self, job: Job) -> None:
        number, arrival = job
        options = self._options(arrival.output_tokens)
        self._post({"model": arrival.model, "messages": messages(number, arrival), "stream": False, "options": options})

    def unload(self, model: str) -> None:
        self._post({"model": model, "messages": [], "keep_alive": 0})

    def _options(self, tokens: int) -> dict[str, int]:
        return {"num_ctx": NUM_CTX, "num_predict": tokens}

    def _post(self, body: dict[str, object]) -> None:
        self._http.post("/api/chat", json=body).raise_for_status()


@contextmanager
def _client(ollama: OllamaSimulator) -> Iterator[_Client]:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=ollama.url, timeout=None, limits=limits, trust_env=False) as http:
        yield _Client(http)


def _direct(client: _Client, jobs: Sequence[Job], clock: _Clock) -> None:
    """People's requests at once, each on a connection of its own; the batch application has some under way at a time."""
    people = [job for job in jobs if job[1].queue == REALTIME]
    with ThreadPoolExecutor(max(1, len(people))) as pages, ThreadPoolExecutor(DIRECT_CLIENTS) as application:
        running = []
        for job in jobs:
            clock.wait_for(job[1].at_s)
            running.append((pages if job[1].queue == REALTIME else application).submit(client.answer, job))
        for future in running:
            future.result()


def _original(client: _Client, card: SimulatedCard, jobs: Sequence[Job], clock: _Clock) -> None:
    """Two queues of one worker each, and one job on the card at a time.

    While a realtime job waits or runs no batch job is begun; one that runs is left alone. After each job its model is unloaded
    and its memory seen to be back.
    """
    turn = threading.Condition()
    active: set[int] = set()  # realtime jobs that wait or run
    waiting: dict[str, list[Job]] = {REALTIME: [], BATCH: []}
    left = {queue: sum(job[1].queue == queue for job in jobs) for queue in (REALTIME, BATCH)}
    one_at_a_time = threading.Lock()

    def may_begin(queue: str) -> bool:
        return bool(waiting[queue]) and not (queue == BATCH and active)

    def serve(queue: str) -> None:
        for _ in range(left[queue]):
            with turn:
                turn.wait_for(lambda: may_begin(queue))
                job = waiting[queue].pop(0)
            with one_at_a_time:
                client.answer(job)
                client.unload(job[1].model)
                _until(lambda: card.used_bytes == card.reserved_bytes)
            with turn:
                active.discard(job[0])
                turn.notify_all()

    with ThreadPoolExecutor(2) as workers:
        running = [workers.submit(serve, queue) for queue in (REALTIME, BATCH)]
        for job in jobs:
            clock.wait_for(job[1].at_s)
            with turn:
                waiting[job[1].queue].append(job)
                if job[1].queue == REALTIME:
                    active.add(job[0])
                turn.notify_all()
        for future in running:
            future.result()
