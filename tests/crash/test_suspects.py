"""Jobs whose worker died while it was executing them: each runs alone next, and only a death there is charged to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuqueue import GPUQueue, JobFailed, JobHandle, State
from gpuqueue.store.sqlite import queries
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import wait_until
from tests.history import History
from tests.processes import started

CONFIG = """
database = "jobs.db"
[gpu]
budget = "5GB"
slots = 2
[queues.poison]
[queues.work]
[queues.low]
yields_to = ["poison"]
[queues.card]
gpu = true
backend = "none"
"""
APP = """
import asyncio, os, sys, time
from gpuqueue import Discard, GPUQueue, Retry, Worker

folder = os.path.dirname(os.path.abspath(__file__))
gq = GPUQueue.from_config(os.path.join(folder, "gpuqueue.toml"))


def append(name, text=""):
    with open(os.path.join(folder, name), "a") as file:
        file.write(f"{text or os.getpid()}\\n")


def wait_for(name):
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.01)


@gq.task(queue="poison")
def poison(waits_for=""):
    append("poisoned")
    if waits_for:
        wait_for(waits_for)
    os._exit(9)


@gq.task(queue="work", max_attempts=3)
def sound(gate):
    append("began")
    wait_for(gate)
    return os.getpid()


@gq.task(queue="work", max_attempts=3)
async def later(gate):
    append("began")
    while not os.path.exists(os.path.join(folder, gate)):
        await asyncio.sleep(0.01)
    return os.getpid()


@gq.task(queue="work", max_attempts=3, isolate=True)
def isolated(gate):
    append("began")
    wait_for(gate)
    return os.getpid()


@gq.task(queue="card", max_attempts=3)
def on_card(gate):
    append("began")
    wait_for(gate)
    return os.getpid()


@gq.task(queue="card", max_attempts=3)
def poison_on_card():
    append("poisoned")
    os._exit(9)


@gq.task(queue="work", max_attempts=2)
def fails_once(gate):
    append("began")
    wait_for(gate)
    append("ran")
    if len(open(os.path.join(folder, "ran")).readlines()) == 1:
        raise Retry("0s")
    return os.getpid()


def define():
    @gq.task(name="app.hidden", queue="poison")
    def hidden():
        append("poisoned")
        os._exit(9)


define()

if "knows-other" in sys.argv:
    @gq.task(name="other.poison", queue="poison")
    def other_poison():
        os._exit(9)


@gq.task(queue="low")
def low():
    return os.getpid()


if __name__ == "__main__":
    Worker(gq, threads=int(sys.argv[1])).run()
"""
TASKS = {
    "poison": ("poison", "hidden"),
    "work": ("sound", "later", "isolated", "fails_once"),
    "card": ("on_card", "poison_on_card"),
    "low": ("low",),
}


class Site:
    """One database, its app, and the worker processes that a test starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "gpuqueue.toml").write_text(CONFIG)
        (folder / "app.py").write_text(APP)
        self.gq = GPUQueue.from_config(folder / "gpuqueue.toml")
        for queue, names in TASKS.items():
            for name in names:
                self.gq.verb(f"app.{name}", queue=queue)
        self.history = History(self.gq)
        self._leaving = ExitStack()

    def start(self, *arguments: str, threads: int = 8) -> subprocess.Popen[str]:
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "app.py", str(threads), *arguments]
            return self._leaving.enter_context(started(command, cwd=self.folder, stderr=log, stdout=log))

    def enqueue(self, name: str, /, **arguments: object) -> JobHandle:
        return self.gq.enqueue(f"app.{name}", arguments, max_attempts=3)

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def until(self, condition: Callable[[], object], what: str) -> None:
        log = self.folder / "log"
        wait_until(condition, f"{what}\n{log.read_text() if log.exists() else ''}")

    def open(self, gate: str) -> None:
        (self.folder / gate).touch()

    def outcomes(self, job: JobHandle) -> list[str]:
        with self.gq.store.engine.lent() as connection:
            return [line["outcome"] for line in queries.timeline(connection, job.id)]

    def close(self) -> None:
        self._leaving.close()
        self.gq.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_jobs_of_every_kind_beside_one_that_kills_its_worker_complete_uncharged(site: Site) -> None:
    kinds = ("sound", "later", "isolated", "on_card")
    jobs = {kind: site.enqueue(kind, gate="gate") for kind in kinds}
    bad = site.enqueue("poison", waits_for="now")
    first = site.start()
    site.until(lambda: len(site.lines("began")) == len(kinds) and site.lines("poisoned"), "all run")
    site.open("now")
    assert first.wait(DEADLINE_S) == 9
    second = site.start()
    site.open("gate")
    with pytest.raises(JobFailed, match=r"the job's process died 3 times; the last time: .* exited with 9"):
        bad.result(timeout_s=DEADLINE_S)
    assert second.poll() is None
    pids = {kind: job.result(timeout_s=DEADLINE_S) for kind, job in jobs.items()}
    assert second.pid not in pids.values(), "each suspect had a process of its own"
    assert {kind: job.refresh().record.crashes for kind, job in jobs.items()} == dict.fromkeys(kinds, 0)
    assert {kind: job.attempt for kind, job in jobs.items()} == dict.fromkeys(kinds, 1)
    crashed = {kind: site.outcomes(job) for kind, job in jobs.items()}
    assert crashed == {**{kind: ["crashed"] for kind in kinds}, "isolated": ["released"]}, "an isolated job is no suspect"
    assert (bad.refresh().record.crashes, site.outcomes(bad)) == (3, ["crashed"] * 4)
    assert len(set(site.lines("poisoned"))) == 4
    site.history.check(completed=[job.id for job in jobs.values()])


def test_at_most_two_suspects_run_at_once_and_other_jobs_go_on_beside_them(site: Site) -> None:
    jobs = [site.enqueue("sound", gate=f"gate{number}") for number in range(5)]
    first = site.start()
    site.until(lambda: len(site.lines("began")) == 5, "all run")
    first.kill()
    first.wait()
    workers = [site.start(), site.start()]
    site.until(lambda: len(site.lines("began")) == 7, "two suspects run")
    others = [site.enqueue("sound", gate="other") for _ in range(3)]
    site.open("other")
    assert {other.result(timeout_s=DEADLINE_S) for other in others} <= {worker.pid for worker in workers}
    assert [job.refresh().state for job in jobs].count(State.RUNNING) == 2
    assert len(site.lines("began")) == 10, "and no third suspect"
    explained = [site.gq.explain(job.id) for job in jobs if job.state is State.AVAILABLE]
    assert {reason.reason for found in explained for reason in found.reasons} >= {"suspect"}
    for number in range(5):
        site.open(f"gate{number}")
    pids = [job.result(timeout_s=DEADLINE_S) for job in jobs]
    assert len(set(pids)) == 5
    assert not {worker.pid for worker in workers} & set(pids)
    site.history.check(completed=[job.id for job in [*jobs, *others]])


def test_a_suspect_that_comes_through_is_cleared(site: Site) -> None:
    job = site.enqueue("fails_once", gate="gate")
    first = site.start()
    site.until(lambda: site.lines("began"), "it runs")
    first.kill()
    first.wait()
    second = site.start()
    site.open("gate")
    assert job.result(timeout_s=DEADLINE_S) == second.pid, "its second attempt is an ordinary one"
    assert site.outcomes(job) == ["crashed", "retried"]
    assert str(second.pid) not in site.lines("ran")[0]


def test_a_suspect_that_no_process_can_import_runs_last_and_alone_in_its_worker(site: Site) -> None:
    bad, neighbour = site.enqueue("hidden"), site.enqueue("sound", gate="gate")
    for deaths in range(1, 5):
        worker = site.start()
        if deaths == 2:
            site.until(lambda: site.lines("began"), "its neighbour runs")
            site.open("gate")
        assert worker.wait(DEADLINE_S) == 9
        assert len(site.lines("poisoned")) == deaths
    site.start()
    with pytest.raises(JobFailed, match=r"the job's process died 3 times; the last time: worker .* died"):
        bad.result(timeout_s=DEADLINE_S)
    assert (site.outcomes(bad), neighbour.refresh().record.crashes) == (["crashed"] * 4, 0)
    with site.gq.store.engine.lent() as connection:
        second = queries.timeline(connection, bad.id)[1]
    assert neighbour.record.finished_at is not None
    assert neighbour.record.finished_at < second["started_at"]
    site.history.check(completed=[neighbour.id])


def test_a_job_on_a_card_that_kills_its_worker_dies_in_a_process_of_its_own_next(site: Site) -> None:
    bad = site.enqueue("poison_on_card")
    first = site.start()
    assert first.wait(DEADLINE_S) == 9
    second = site.start()
    with pytest.raises(JobFailed, match="the job's process died 3 times"):
        bad.result(timeout_s=DEADLINE_S)
    site.open("gate")
    assert site.enqueue("on_card", gate="gate").result(timeout_s=DEADLINE_S) == second.pid
    assert site.outcomes(bad) == ["crashed"] * 4
    site.until(lambda: not site.gq.view().devices["gpu0"].reservations, "the card is free")


def test_a_suspect_that_is_cancelled_while_it_waits_never_runs(site: Site) -> None:
    bad = site.enqueue("poison")
    assert site.start().wait(DEADLINE_S) == 9
    bad.cancel()
    site.start()
    assert site.enqueue("sound", gate="poisoned").result(timeout_s=DEADLINE_S)
    site.until(lambda: bad.refresh().state is State.CANCELLED, "its end")
    assert len(site.lines("poisoned")) == 1


def test_a_suspect_whose_task_no_worker_knows_holds_no_queue_that_yields_to_its_own(site: Site) -> None:
    site.gq.verb("other.poison", queue="poison")
    bad = site.gq.enqueue("other.poison", {}, max_attempts=3)
    assert site.start("knows-other").wait(DEADLINE_S) == 9
    worker = site.start()
    site.until(lambda: bad.refresh().record.error, "it is a suspect")
    assert site.enqueue("low").result(timeout_s=DEADLINE_S) == worker.pid
    (why,) = (hold for hold in site.gq.explain(bad.id).reasons if hold.reason == "suspect")
    assert "at a worker that knows other.poison" in why.detail
    assert site.start("knows-other").wait(DEADLINE_S) == 9, "it runs there"
