"""Four worker processes race: for one card's slots and budget, and against a pause. The jobs themselves are the witnesses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuqueue import Config, GPUQueue
from gpuqueue.store.sqlite.outcomes import reservations
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import wait_until
from tests.history import History
from tests.processes import started

WORKERS = 4
APP = '''
import os
from gpuqueue import Config, GPUQueue, Worker, hookimpl
from gpuqueue.plugins import Demand

folder = os.path.dirname(os.path.abspath(__file__))


class Sizes:
    """A job says itself how many gigabytes it needs."""

    @hookimpl
    def job_demand(self, details):
        return Demand(details.job.arguments["gb"] * 10**9) if "gb" in details.job.arguments else None


gq = GPUQueue(config=Config.load(None, **SETTINGS), plugins=[Sizes()])


def witness(text):
    descriptor = os.open(os.path.join(folder, "witness"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (text + "\\n").encode())  # one write: lines of several processes never mix
    os.close(descriptor)


@gq.task(queue="gpu")
def compute(gb=5):
    witness(f"+ {gb}")
    sum(range(20000))
    witness(f"- {gb}")


@gq.task(queue="batch")
def note():
    pass


if __name__ == "__main__":
    Worker(gq, threads=2).run()
'''


class Race:
    """Four workers of one small app."""

    def __init__(self, folder: Path, **gpu: object) -> None:
        settings = {
            "database": str(folder / "jobs.db"),
            "gpu": {"budget": "5GB", **gpu},
            "queues": {"gpu": {"gpu": True, "backend": "none"}, "batch": {}},
        }
        self.folder = folder
        (folder / "app.py").write_text(APP.replace("SETTINGS", repr(settings)))
        self.gq = GPUQueue(config=Config.load(None, **settings))
        self.gq.task(name="app.compute", queue="gpu")(lambda gb=5: gb)
        self.gq.task(name="app.note", queue="batch")(lambda: None)
        self.history = History(self.gq)
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "app.py"]
            self._leaving = ExitStack()
            self.processes = [
                self._leaving.enter_context(started(command, cwd=folder, stderr=log, stdout=log)) for _ in range(WORKERS)
            ]

    def all_work(self) -> None:
        def look() -> bool:
            assert not any(process.poll() for process in self.processes), (self.folder / "log").read_text()
            return len(self.gq.workers()) == WORKERS

        wait_until(look, "all work")

    def witnessed(self) -> list[str]:
        return (self.folder / "witness").read_text().splitlines()

    def stop(self) -> None:
        self._leaving.close()
        self.gq.close()


@pytest.fixture
def race(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Race]:
    made = Race(tmp_path, **getattr(request, "param", {}))
    try:
        made.all_work()
        yield made
    finally:
        made.stop()


def test_two_jobs_are_never_on_one_device_at_once(race: Race) -> None:
    jobs = race.gq.enqueue_many([("app.compute", {}) for _ in range(60)])
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    assert race.witnessed() == ["+ 5", "- 5"] * 60
    race.history.check(completed=[job.id for job in jobs])
    workers = {job.refresh().record.worker_id for job in jobs}
    assert len(workers) > 1, "more than one worker took part in the race"


@pytest.mark.parametrize("race", [{"slots": 3, "max_models": 3}], indirect=True)
def test_what_is_reserved_never_exceeds_the_budget(race: Race) -> None:
    jobs = race.gq.enqueue_many([("app.compute", {"gb": 1 + number % 4}) for number in range(60)])
    most = 0
    while not all(job.refresh().finished_at for job in jobs):
        with race.gq.store.engine.lent() as connection:
            taken = reservations(connection)
        assert len(taken) <= 3
        most = max(most, sum(item.reserved_bytes for item in taken))
        assert most <= 5 * 10**9
    assert {job.state for job in jobs} == {"completed"}
    together, largest = 0, 0
    for line in race.witnessed():
        sign, gb = line.split()
        together += int(gb) if sign == "+" else -int(gb)
        largest = max(largest, together)
    assert together == 0
    assert largest <= 5
    race.history.check(completed=[job.id for job in jobs])


def test_no_job_of_a_queue_starts_after_its_pause_has_returned(race: Race) -> None:
    jobs = race.gq.enqueue_many([("app.note", {}) for _ in range(2000)])
    for _ in range(5):
        finished = race.gq.counts()["batch"].get("completed", 0)
        if finished == len(jobs):
            break
        wait_until(lambda so_far=finished: race.gq.counts()["batch"].get("completed", 0) > so_far, "jobs complete")
        race.gq.pause("batch")
        paused_at = race.gq.now()
        # What was claimed before goes on; the workers come to rest without starting another.
        wait_until(lambda: not race.gq.counts()["batch"].get("running"), "what ran has ended")
        started = [job.refresh().started_at for job in jobs]
        assert max(when for when in started if when is not None) <= paused_at
        race.gq.resume("batch")
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    paused = False
    for event in race.history.events():  # in the order of their commits
        paused = event.name == "queue_paused" or (paused and event.name != "queue_resumed")
        assert not (paused and event.name == "attempt_started"), f"{event} came after the pause was committed"
    race.history.check(completed=[job.id for job in jobs])
