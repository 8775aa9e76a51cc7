"""Wherever one call of a worker fails, once and in whatever way: it costs at most the job that met it an attempt."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from gpuqueue import GPUQueue, Worker, current_job
from gpuqueue.domain.errors import GPUQueueError, StoreFull
from gpuqueue.domain.job import FINISHED
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.store import liveness
from gpuqueue.testing.waiting import DEADLINE_S, wait_until
from tests.faults.injection import Faults, Point
from tests.sampling import seed_of

CONFIGURATION = """
database = "sqlite:///q.db"
[gpu]
budget = "5GB"
margin = "1GB"
[queues.cards]
gpu = true
concurrency = 1
[worker]
grace = "2s"
lease = "6s"
"""


class Fault(BaseException):
    """What nobody expects: no Exception."""


FAULTS: dict[str, Callable[[], BaseException]] = {
    "Exception": lambda: RuntimeError("injected"),
    "BaseException": lambda: Fault("injected"),
    "MemoryError": lambda: MemoryError(),
    "StoreFull": lambda: StoreFull("the disk is full (injected)"),
}
SAMPLE, PARTS = 60, 40
# A worker that a fault keeps from closing a file leaves it to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Case(NamedTuple):
    """A queue object, and its jobs by kind, each with the state in which it ends without a fault."""

    gq: GPUQueue
    enqueue: Callable[[], dict[int, str]]


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    folder.mkdir()
    (folder / "gpuqueue.toml").write_text(CONFIGURATION)
    with simulated_nvml(SimulatedCard()):
        gq = GPUQueue.from_config(folder / "gpuqueue.toml", discover_plugins=False)

        @gq.task(queue="plain", max_attempts=2, backoff=lambda _: 0.0)
        def speaks(n: int) -> int:
            current_job().emit("one ")
            current_job().log("line")
            current_job().progress(0.5, note="half")
            return n

        @gq.task(queue="plain", max_attempts=1)
        def fails() -> None:
            raise ValueError("as always")

        @gq.task(queue="plain", max_attempts=2, backoff=lambda _: 0.0)
        async def answers(n: int) -> int:
            current_job().emit("two ")
            return n

        @gq.task(queue="cards", vram="1GB", max_attempts=2, backoff=lambda _: 0.0)
        def computes(n: int) -> int:
            return n

        def enqueue() -> dict[int, str]:
            good = [task.enqueue(n=n).id for n in range(2) for task in (speaks, answers, computes)]
            return {**dict.fromkeys(good, "completed"), fails.enqueue().id: "discarded"}

        try:
            yield Case(gq, enqueue)
        finally:
            gq.close()


def has_ended(gq: GPUQueue, jobs: dict[int, str]) -> bool:
    return all(gq.job(job_id).state in FINISHED for job_id in jobs)


class Run:
    """A worker in a thread of its own, and the error that it ended with."""

    def __init__(self, gq: GPUQueue) -> None:
        self.error: BaseException | None = None
        self.worker = Worker(gq, threads=2)
        self._gq = gq
        self._thread = threading.Thread(target=self._run, name="worker-of-the-case", daemon=True)

    def __enter__(self) -> Run:
        self._thread.start()
        wait_until(lambda: self._gq.view().workers or self.has_ended, "the worker to register")
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.request_stop()
        self._thread.join(DEADLINE_S)
        assert self.has_ended, "the worker does not stop"

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error


def play(folder: Path, faults: Faults) -> str:
    """Run a worker that meets a fault, and the next one; returns what is wrong afterwards, "" for nothing."""
    before = set(threading.enumerate())

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread not in before]

    found = _played(folder, faults)
    try:
        wait_until(lambda: not left(), "the threads of the workers to end")
    except AssertionError:
        return f"{found}; these threads go on: {', '.join(left())}"
    return found


def _played(folder: Path, faults: Faults) -> str:
    with case(folder) as (gq, enqueue):
        jobs = enqueue()
        with faults.watching(), Run(gq) as first:
            faults.armed.set()
            wait_until(lambda: have_ended(gq, jobs) or first.has_ended, "the jobs to end")
            if not first.has_ended:
                jobs |= enqueue()
            wait_until(lambda: have_ended(gq, jobs) or first.has_ended, "later jobs to end")
        if first.error is not None and not isinstance(first.error, GPUQueueError):
            return f"the worker ended without a sentence: {first.error!r}"
        with Run(gq) as second:
            wait_until(lambda: have_ended(gq, jobs) and not is_reserved(gq), "the next worker to finish everything")
        assert second.error is None
        found = [gq.job(job_id) for job_id in jobs]
        wrong = [job for job in found if job.state != jobs[job.id]]
        if len(wrong) > 1 or any(job.error is None or job.error.code not in ("internal", "failed", "result") for job in wrong):
            return "; ".join(f"job {job.id} ({job.record.task}) is {job.state}: {job.error}" for job in wrong)
        return ""


def have_ended(gq: GPUQueue, jobs: dict[int, str]) -> bool:
    return all(gq.job(job_id).state in FINISHED for job_id in jobs)


def is_reserved(gq: GPUQueue) -> bool:
    return any(device.reservations for device in gq.view().devices.values())


def points(folder: Path) -> list[Point]:
    """Every call between two modules that a worker makes without a fault, in a fixed order."""
    faults = Faults()
    assert play(folder, faults) == ""
    return sorted(faults.seen)


def check(folder: Path, chosen: list[tuple[Point, str]]) -> None:
    met, wrong = 0, []
    for number, (point, kind) in enumerate(chosen):
        faults = Faults(point, FAULTS[kind]())
        try:
            found = play(folder / str(number), faults)
        except AssertionError as error:
            found = str(error)
        met += faults.raised
        if found:
            wrong.append(f"{kind} at {point}: {found}")
    for left in list(liveness._open_files):  # also what a thread still refers to, or the warning would meet a later test
        left.close()
    gc.collect()
    print(f"{len(chosen)} faults tried, {met} met")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(chosen)} faults spread:", *wrong])


def cases_of(folder: Path) -> list[tuple[Point, str]]:
    found = [(point, kind) for point in points(folder / "points") for kind in FAULTS]
    print(f"{len(found) // len(FAULTS)} points, {len(found)} faults")
    return found


def test_a_fault_costs_nothing_but_what_met_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    check(tmp_path, random.Random(seed_of(request.config)).sample(cases_of(tmp_path), SAMPLE))


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_anywhere_costs_anything_but_what_met_it(tmp_path: Path, part: int) -> None:
    check(tmp_path, cases_of(tmp_path)[part::PARTS])
