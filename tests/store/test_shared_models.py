"""Jobs that share a loaded model: its memory is reserved once, exactly, and nobody unloads it from under another."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from gpuqueue.domain.estimates import ONE_AT_ONCE, Observation
from gpuqueue.domain.job import Lease
from gpuqueue.domain.room import sharing_with, taken_bytes
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.store import open_store
from tests.store.rows import GB, NOW_US, Rows

CARD = DeviceSettings("gpu0", 5 * GB, slots=3, max_models=2)


@pytest.fixture
def card(rows: Rows) -> Rows:
    rows.queue("ai", gpu=True)
    return rows


def request(rows: Rows, gb: float = 4, model: str = "m") -> int:
    return rows.enqueue_sized("ai", gb, model, task="ollama.generate")


def reserved(rows: Rows) -> int:
    with rows.store.snapshot() as reads:
        return taken_bytes(reads.reservations())


def test_the_second_job_of_a_loaded_model_takes_no_more_memory(card: Rows) -> None:
    card.placed(request(card), device=CARD)
    card.placed(request(card, model="M:latest"), device=CARD)
    assert reserved(card) == 4 * GB
    assert card.place(request(card, 2, "n"), device=CARD) is None
    assert card.place(request(card, 1, "n"), device=CARD) is not None


@pytest.mark.parametrize("first", [0, 1])
def test_the_memory_stays_reserved_until_the_last_of_a_models_jobs_is_cleaned_up(card: Rows, first: int) -> None:
    leases = [card.placed(request(card, gb), device=CARD) for gb in (3, 4)]
    other = request(card, 2.5, "n")
    ended, running = leases[first], leases[1 - first]
    assert card.complete(ended)
    assert card.place(other, device=CARD) is None
    assert card.store.attempts.release_device(ended.job_id, ended.lease)
    assert reserved(card) == (4 if first == 0 else 3) * GB
    assert card.place(other, device=CARD) is None
    assert card.complete(running)
    assert card.place(other, device=CARD) is None
    assert card.store.attempts.release_device(running.job_id, running.lease)
    assert card.place(other, device=CARD) is not None


def test_no_job_starts_to_use_a_model_that_only_ended_attempts_hold(card: Rows) -> None:
    first, second = (card.placed(request(card), device=CARD) for _ in range(2))
    third = request(card)
    assert card.complete(first)
    assert card.complete(second)
    assert card.place(third, device=CARD) is None, "it is being unloaded"
    assert card.store.attempts.release_device(first.job_id, first.lease)
    assert card.place(third, device=CARD) is None, "it still is"
    assert card.store.attempts.release_device(second.job_id, second.lease)
    assert card.place(third, device=CARD) is not None


def test_a_job_may_join_one_that_runs_while_another_is_cleaned_up(card: Rows) -> None:
    first, _ = (card.placed(request(card), device=CARD) for _ in range(2))
    assert card.complete(first)
    assert card.place(request(card), device=CARD) is not None


def test_a_model_runs_no_more_jobs_at_once_than_its_server_takes(card: Rows) -> None:
    for _ in range(2):
        card.placed(request(card), device=CARD, parallel=2)
    assert card.place(request(card), device=CARD, parallel=2) is None
    assert card.place(request(card, 1, "n"), device=CARD, parallel=2) is not None


def test_a_model_that_its_server_runs_one_at_a_time_is_known_from_the_rows(card: Rows) -> None:
    card.store.estimates.learn([Observation(ONE_AT_ONCE, "m:latest", 1)], now_us=NOW_US)
    card.placed(request(card), device=CARD)
    assert card.place(request(card), device=CARD) is None


def test_a_dead_workers_job_leaves_the_memory_to_the_one_that_runs_elsewhere(card: Rows) -> None:
    lost = card.placed(request(card), device=CARD, worker="dead")
    running = card.placed(request(card), device=CARD)
    (orphan,) = card.rescue("dead")
    assert orphan.job_id == lost.job_id
    with card.store.snapshot() as reads:
        assert sharing_with(orphan.job_id, reads.reservations()) == [running.job_id]
    assert card.store.attempts.release_device(orphan.job_id, orphan.lease)
    assert reserved(card) == 4 * GB


class Claimer:
    """Claims, ends and cleans up jobs as a worker does, on a store of its own, and watches that nothing is exceeded."""

    def __init__(self, folder: Path, name: str, race: Race, seed: int) -> None:
        self.store = open_store(folder / "jobs.db", write_timeout_s=120.0)
        self.rows = Rows(self.store, worker=name)
        self.rows.queue("ai", gpu=True)
        self.race = race
        self.random = random.Random(seed)
        self.held: list[Lease] = []
        self.thread = threading.Thread(target=self.work)

    def work(self) -> None:
        try:
            while (self.race.todo or self.held) and not self.race.errors:
                self.claim()
                if self.held and self.random.random() < 0.6:
                    self.end(self.held.pop(self.random.randrange(len(self.held))))
        except BaseException as error:
            self.race.errors.append(error)

    def claim(self) -> None:
        with self.race.lock:
            todo = list(self.race.todo)
        self.random.shuffle(todo)
        for job_id in todo[:3]:
            lease = self.rows.place(job_id, device=CARD, parallel=2)
            if lease is not None:
                with self.race.lock:
                    self.race.todo.discard(job_id)
                    self.race.used(lease.model)
                self.held.append(lease)
            self.race.look(self.store)

    def end(self, lease: Lease) -> None:
        with self.race.lock:
            self.race.using[lease.model] -= 1
        assert self.rows.complete(lease)
        with self.store.snapshot() as reads:
            unloads = not sharing_with(lease.job_id, reads.reservations())
        if unloads:
            self.race.unloading(lease.model, +1)
            self.claim()  # of any model but this one
            self.race.unloading(lease.model, -1)
            self.race.unload_count += 1
        assert self.store.attempts.release_device(lease.job_id, lease.lease)


class Race:
    """Several claimers on one file."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.Lock()
        self.todo: set[int] = set()
        self.using = {"m": 0, "n": 0, "k": 0}
        self.leaving = {"m": 0, "n": 0, "k": 0}
        self.unload_count = 0
        self.errors: list[BaseException] = []
        self.most: set[int] = set()
        self.claimers = [Claimer(folder, f"w{number}", self, number) for number in range(4)]

    def used(self, model: str) -> None:
        assert not self.leaving[model], f"{model} was claimed while it was being unloaded"
        self.using[model] += 1

    def unloading(self, model: str, change: int) -> None:
        with self.lock:
            assert not self.using[model], f"{model} is unloaded while a job uses it"
            self.leaving[model] += change

    def look(self, store: object) -> None:
        """Check every limit in one moment of the file."""
        with store.snapshot() as reads:  # type: ignore[attr-defined]
            there = [item for item in reads.reservations() if item.device == CARD.name]
        counts = [sum(item.model == model for item in there) for model in {item.model for item in there}]
        self.most.add(len(there))
        assert len(there) <= CARD.slots
        assert len(counts) <= CARD.max_models
        assert max(counts, default=0) <= 2
        assert taken_bytes(there) <= CARD.budget_bytes

    def run(self) -> None:
        for claimer in self.claimers:
            claimer.thread.start()
        for claimer in self.claimers:
            claimer.thread.join()
        if self.errors:
            raise self.errors[0]


def test_claimers_in_a_race_never_exceed_a_limit_nor_unload_a_model_that_is_used(card: Rows, tmp_path: Path) -> None:
    race = Race(tmp_path)
    race.todo = {request(card, *kind) for _ in range(25) for kind in ((4, "m"), (1, "n"), (2, "k"))}
    try:
        race.run()
    finally:
        for claimer in race.claimers:
            claimer.store.close()
    assert reserved(card) == 0
    assert not any(race.using.values())
    assert race.unload_count
    assert race.most >= {1, 2, 3}, "jobs did run together"
