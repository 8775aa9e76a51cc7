"""Worker processes that are killed, stopped and asked to end, beside others that live: no job is lost, none finishes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuqueue import Config, GPUQueue, JobFailed, State
from gpuqueue.store.sqlite import queries
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import wait_until
from tests.crash.stopping import go_on, stop_outside_a_write
from tests.history import History
from tests.processes import started

APP = """
import os, signal, sys, threading
from gpuqueue import Config, GPUQueue, Worker

folder = os.path.dirname(os.path.abspath(__file__))
gq = GPUQueue(config=Config.load(None, database=os.path.join(folder, "jobs.db"), worker=WORKER))
gq.queue("work")
gq.queue("narrow", concurrency=2)


def append(name, text):
    with open(os.path.join(folder, name), "a") as file:
        file.write(text + "\\n")


@gq.task(queue="work")
def note(number):
    append("ran", str(number))
    return number


@gq.task(queue="narrow")
def note_narrow(number):
    append("ran", str(number))
    return number


@gq.task(queue="work")
def poison(exits):
    append("poisoned", str(os.getpid()))
    os._exit(1) if exits else os.kill(os.getpid(), signal.SIGKILL)


@gq.task(queue="work")
def block(number):
    append("began", f"{number} {os.getpid()}")
    with open(os.path.join(folder, f"gate-{number}")):  # a FIFO: the test opens its other end
        pass
    append("ended", f"{number} {os.getpid()}")
    return os.getpid()


class TellingWorker(Worker):
    def request_stop(self):
        super().request_stop()
        append("asked", str(os.getpid()))


if __name__ == "__main__":
    TellingWorker(gq, threads=int(sys.argv[1])).run()
"""


class Site:
    """One database, its app, and the worker processes that a test starts."""

    def __init__(self, folder: Path, *, lease: str = "30s", grace: str = "30s", max_crashes: int = 3) -> None:
        self.folder = folder
        settings = {"lease": lease, "grace": grace, "max_crashes": max_crashes}
        (folder / "app.py").write_text(APP.replace("WORKER", repr(settings)))
        self.gq = GPUQueue(config=Config.load(None, database=folder / "jobs.db", worker=settings))
        for name, queue in (("note", "work"), ("note_narrow", "narrow"), ("poison", "work"), ("block", "work")):
            self.gq.task(name=f"app.{name}", queue=queue)(_signature_of(name))
        self.gq.queue("narrow", concurrency=2)
        self.history = History(self.gq)
        self.processes: list[subprocess.Popen[str]] = []
        self._leaving = ExitStack()

    def start(self, *, threads: int = 4) -> subprocess.Popen[str]:
        """Start a worker and wait until it is registered, or has died of its first job already."""
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "app.py", str(threads)]
            process = self._leaving.enter_context(started(command, cwd=self.folder, stderr=log, stdout=log))
        self.processes.append(process)
        self.until(
            lambda: process.poll() is not None or any(worker.pid == process.pid for worker in self.gq.workers()),
            "the worker is registered",
        )
        return process

    def until(self, condition: Callable[[], object], what: str) -> None:
        def look() -> object:
            return condition() or self._broken()

        wait_until(look, f"{what}\n{self.log()}")

    def _broken(self) -> None:
        assert "has different settings" not in self.log(), self.log()

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def gate(self, number: int) -> None:
        os.mkfifo(self.folder / f"gate-{number}")

    def open_gate(self, number: int) -> None:
        """Let every attempt go on that waits at the gate now, and those that come later."""
        descriptor = os.open(self.folder / f"gate-{number}", os.O_RDWR | os.O_NONBLOCK)
        self._gates = [*getattr(self, "_gates", []), descriptor]

    def shut_down(self) -> None:
        self._leaving.close()
        for descriptor in getattr(self, "_gates", []):
            os.close(descriptor)
        self.gq.close()

    def outcomes(self, job_id: int) -> list[str]:
        with self.gq.store.engine.lent() as connection:
            return [line["outcome"] for line in queries.timeline(connection, job_id)]


def _signature_of(name: str) -> Callable[..., object]:
    """A function of the same arguments: this process only enqueues."""
    functions: dict[str, Callable[..., object]] = {
        "note": lambda number: number,
        "note_narrow": lambda number: number,
        "poison": lambda exits: exits,
        "block": lambda number: number,
    }
    return functions[name]


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**settings: object) -> Site:
        made.append(Site(tmp_path, **settings))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for site in made:
        site.shut_down()


def test_when_a_worker_is_killed_amid_many_jobs_another_completes_them_all(make_site: Callable[..., Site]) -> None:
    site = make_site(max_crashes=9)
    victim = site.start()
    site.start()
    jobs = [site.gq.enqueue("app.note" if number % 3 else "app.note_narrow", {"number": number}) for number in range(400)]
    jobs += site.gq.enqueue_many([("app.note", {"number": number}) for number in range(400, 1500)])
    site.until(lambda: len(site.lines("ran")) > 200, "some jobs ran")
    victim.kill()
    victim.wait()
    assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == list(range(1500))
    ran = Counter(map(int, site.lines("ran")))
    assert set(ran) == set(range(1500)), "every job ran at least once"
    site.until(lambda: len(site.gq.workers()) == 1, "the dead worker is gone")
    site.history.check(completed=[job.id for job in jobs])
    assert site.gq.counts()["work"] == {"completed": sum(1 for job in jobs if job.queue == "work")}


@pytest.mark.parametrize("exits", [False, True])
def test_a_job_that_kills_its_worker_and_then_its_processes_is_discarded(make_site: Callable[..., Site], exits: bool) -> None:
    site = make_site()
    site.start(threads=1)
    poisonous = site.gq.enqueue("app.poison", {"exits": exits}, priority=1)
    harmless = [site.gq.enqueue("app.note", {"number": number}) for number in range(20)]
    site.processes[0].wait(DEADLINE_S)
    assert len(site.lines("poisoned")) == 1
    second = site.start(threads=1)
    with pytest.raises(JobFailed, match="the job's process died 3 times") as caught:
        poisonous.result(timeout_s=DEADLINE_S)
    assert caught.value.code == "crashed"
    assert second.poll() is None
    assert [job.result(timeout_s=DEADLINE_S) for job in harmless] == list(range(20))
    assert {job.record.crashes for job in harmless} == {0}
    assert site.outcomes(poisonous.id) == ["crashed"] * 4
    assert len(set(site.lines("poisoned"))) == 4
    site.history.check(completed=[job.id for job in harmless])


def test_jobs_that_were_claimed_and_not_begun_lose_nothing_by_their_workers_death(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.start(threads=1)
    # Many short jobs teach the worker to claim ahead; then one blocks while others are claimed behind it.
    for job in site.gq.enqueue_many([("app.note", {"number": number}) for number in range(300)]):
        job.result(timeout_s=DEADLINE_S)
    site.gate(0)
    site.gq.pause("work")
    blocking = site.gq.enqueue("app.block", {"number": 0}, priority=1)
    behind = site.gq.enqueue_many([("app.note", {"number": number}) for number in range(1000, 1100)])
    site.gq.resume("work")
    site.until(lambda: site.lines("began"), "the first job blocks")
    site.processes[0].kill()
    site.processes[0].wait()
    site.open_gate(0)
    site.start()
    assert isinstance(blocking.result(timeout_s=DEADLINE_S), int)
    assert [job.result(timeout_s=DEADLINE_S) for job in behind] == list(range(1000, 1100))
    assert blocking.record.crashes == 0
    assert {job.record.crashes for job in behind} == {0}
    assert site.outcomes(blocking.id) == ["crashed"]
    site.history.check(completed=[blocking.id, *(job.id for job in behind)])


def test_a_worker_stopped_for_longer_than_its_lease_finishes_nothing_late(make_site: Callable[..., Site]) -> None:
    site = make_site(lease="5s", max_crashes=9)
    site.gate(0)
    stopped = site.start()
    job = site.gq.enqueue("app.block", {"number": 0})
    site.until(lambda: site.lines("began"), "the job began")
    stop_outside_a_write(stopped, site.gq)
    other = site.start()
    site.until(lambda: len(site.lines("began")) == 2, "the job began again elsewhere")
    elsewhere = int(site.lines("began")[1].split()[1])
    assert elsewhere not in (stopped.pid, other.pid), "a job that may have stopped its worker has a process of its own"
    site.open_gate(0)
    assert job.result(timeout_s=DEADLINE_S) == elsewhere
    before = job.refresh().record
    go_on(stopped)
    site.until(lambda: f"0 {stopped.pid}" in site.lines("ended"), "the late attempt ended too")
    site.until(lambda: "worker" in site.log() and "lost its lease" in site.log(), "the worker noticed")
    # It begins anew under another name, and works on.
    site.until(lambda: sorted(worker.pid for worker in site.gq.workers()) == sorted([stopped.pid, other.pid]), "both work")
    assert site.gq.enqueue("app.note", {"number": 7}).result(timeout_s=DEADLINE_S) == 7
    assert job.refresh().record == before
    site.history.check(completed=[job.id])


def test_sigterm_gives_running_jobs_back_unspent_after_the_grace(make_site: Callable[..., Site]) -> None:
    site = make_site(grace="200ms")
    site.gate(0)
    first = site.start()
    job = site.gq.enqueue("app.block", {"number": 0})
    site.until(lambda: site.lines("began"), "the job began")
    first.send_signal(signal.SIGTERM)
    assert first.wait(DEADLINE_S) == 0
    record = job.refresh().record
    assert (record.state, record.attempt, record.crashes) == (State.AVAILABLE, 0, 0)
    assert site.outcomes(job.id) == ["released"]
    assert site.gq.workers() == []
    site.open_gate(0)
    second = site.start()
    assert job.result(timeout_s=DEADLINE_S) == second.pid
    assert job.refresh().record.attempt == 1
    site.history.check(completed=[job.id])


def test_a_second_sigterm_does_not_wait_for_the_grace(make_site: Callable[..., Site]) -> None:
    site = make_site(grace="1h")
    site.gate(0)
    worker = site.start()
    job = site.gq.enqueue("app.block", {"number": 0})
    site.until(lambda: site.lines("began"), "the job began")
    worker.send_signal(signal.SIGTERM)
    site.until(lambda: site.lines("asked"), "the worker was asked to stop")
    waiting = site.gq.enqueue("app.note", {"number": 1})
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(0.5)
    # A claim that had begun by then may have taken it; it is given back without having started.
    site.until(lambda: waiting.refresh().state is State.AVAILABLE, "it starts no other job")
    assert job.refresh().state is State.RUNNING
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 0
    assert (site.lines("ran"), waiting.refresh().attempt) == ([], 0)
    assert (job.refresh().state, job.attempt) == (State.AVAILABLE, 0)
    site.history.check(unfinished=[job.id, waiting.id])


def test_sigterm_lets_a_job_end_that_ends_within_the_grace(make_site: Callable[..., Site]) -> None:
    site = make_site(grace="1h")
    site.gate(0)
    worker = site.start()
    job = site.gq.enqueue("app.block", {"number": 0})
    site.until(lambda: site.lines("began"), "the job began")
    worker.send_signal(signal.SIGTERM)
    site.open_gate(0)
    assert job.result(timeout_s=DEADLINE_S) == worker.pid
    assert worker.wait(DEADLINE_S) == 0
    assert site.outcomes(job.id) == []
    site.history.check(completed=[job.id])
