"""Owns the stage of the machine: the store and the model beside each other, and what its rules do to both in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from gpuqueue import UnknownJob
from gpuqueue.config.shared import settings_digest
from gpuqueue.domain.claim import Capacity
from gpuqueue.domain.errors import BackendUnavailable
from gpuqueue.domain.job import Event, Lease, State
from gpuqueue.domain.outcomes import Outcome
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.store.sqlite import queries
from gpuqueue.worker.running import Attempt
from tests import history
from tests.properties.endings import ENDINGS, MAKES_ROOM
from tests.properties.model import Model
from tests.properties.model_jobs import LEASE_S, MAX_CRASHES, SECOND
from tests.properties.offers import JOBS
from tests.properties.scene import (
    ASYNCHRONOUS,
    CARDS,
    Clock,
    PlayedWorker,
    Workshop,
    demand_of,
    is_continued,
    is_preemptible,
    kind_of,
    open_queue,
)

PICK = st.integers(0, 997)
ANY_END = st.just("returns") | st.sampled_from(sorted(ENDINGS))  # to complete is the end that must be fenced first of all


def step(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule; a microsecond passes before it, and the machine counts as healthy again only when it agrees afterwards."""

    def wrap(function: Callable[..., None]) -> Any:
        @rule(**strategies)
        @functools.wraps(function)
        def run(self: Play, **drawn: Any) -> None:
            type(self).step_count += 1
            self.is_healthy = False
            self.tick(1)
            function(self, **drawn)

        return run

    return wrap


def choose(items: Sequence[Any], pick: int) -> Any:
    return items[pick % len(items)]


class Play(RuleBasedStateMachine):
    """`folder` is where the file is, the same for each run; `step_count` counts the steps of all runs."""

    folder: ClassVar[Path]
    step_count: ClassVar[int] = 0
    is_healthy = False

    @initialize(cards=st.sampled_from(sorted(CARDS)), jobs=st.lists(JOBS, max_size=8))
    def open(self, cards: str, jobs: list[Any]) -> None:
        self.clock = Clock()
        self.gq = open_queue(self.folder, cards, self.clock)
        self.store = self.gq.store
        settings = self.gq.own_settings()
        largest = max(device.budget_bytes for device in settings.devices)
        self.model = Model(
            self.clock.now,
            settings.queues,
            settings.devices,
            settings.backends,
            demand_of=lambda job: demand_of(job, largest),
            placement=settings.placement,
            kind_of=kind_of,
            is_preemptible=is_preemptible,
            is_continued=is_continued,
        )
        self.workshop = Workshop(self.gq, self.clock)
        self.workers: list[PlayedWorker] = []
        self.dead: list[PlayedWorker] = []
        self.late: list[Attempt] = []  # attempts whose worker died; the last ones may still end
        self.old_clean_ups: list[tuple[int, int]] = []
        self.events: list[Event] = []
        self.digest = ""
        self.store.followers.add(history.FOLLOWER)
        self.accept()
        self.starts_worker(None)
        self.enqueues(jobs, "many", None)

    def tick(self, us: int) -> None:
        self.clock.now += us
        self.model.now = self.clock.now

    def accept(self) -> None:
        shared = self.gq.shared()
        self.digest = f"{settings_digest(shared)} {self.clock.now}"
        self.store.workers.accept_configuration(digest=self.digest, settings=shared, force=True, now_us=self.clock.now)

    def any_job(self, pick: int, *states: str) -> int | None:
        ids = [job["id"] for job in self.model.jobs.values() if not states or job["state"] in states]
        return choose(ids, pick) if ids else None

    def options(self, options: Mapping[str, Any], at: int | None) -> dict[str, Any]:
        if at is None or options.get("delay") is not None:
            return dict(options)
        return {**options, "at": from_us(self.clock.now + at * SECOND)}

    def store_jobs(self, jobs: list[Any], way: str, connection: Any) -> list[int]:
        """Enqueue jobs in one of the ways there are; returns their ids."""
        if way.startswith("many"):
            requests = []
            for task, arguments, queue, options in jobs:
                named = {"queue": queue} if queue else {}
                requests.append({"task": task, "arguments": arguments, **named, **options})
            return [handle.id for handle in self.gq.enqueue_many(requests, connection=connection)]
        ids = []
        for task, arguments, queue, options in jobs:
            given = {**options, "queue": queue, "connection": connection}
            if way == "using" and task in self.gq.tasks:
                ids.append(self.gq.tasks[task].using(**given).enqueue(**arguments).id)
            else:
                ids.append(self.gq.enqueue(task, arguments, **given).id)
        return ids

    @contextmanager
    def transaction(self, way: str, *, commits: bool) -> Any:
        """A transaction of the caller's own, where the way asks for one."""
        if "connection" not in way and "session" not in way:
            with nullcontext() as nothing:
                yield nothing
            return
        engine = _engine(self.gq.database)
        with engine.connect() if way == "connection" else Session(engine) as connection:
            yield connection
            with self.store.engine.lent() as reading:
                newest = reading.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0]
            assert newest <= self.model.newest, "a job is seen before its transaction has committed"
            connection.commit() if commits else connection.rollback()

    def told_of(self, job_id: int, task: str, arguments: Any, queue: str | None, options: Mapping[str, Any]) -> None:
        """Tell the model of a stored job: what is asked for goes before the task's, and that before the queue's."""
        by_task: dict[str, Any] = {"work": {}, "awork": {"max_attempts": 2}, "picky": {"max_attempts": 3}}.get(task, {})
        queue = queue or {"picky": "narrow", "compute": "train", "firm": "train"}.get(task, "mail")
        settings = self.model.queues[queue]
        attempts = 3 if task == "ollama.generate" else 1
        now, due = self.clock.now, self.clock.now
        if "at" in options:
            due = to_us(options["at"])
        due += {"10s": 10, 90: 90}.get(options.get("delay"), 0) * SECOND
        expires_in = {"20s": 20, "5m": 300, 0: 0}.get(options.get("expires_in"))  # type: ignore[arg-type]
        timeout = {"50s": 50.0, 2: 2.0}.get(options.get("timeout"))  # type: ignore[arg-type]
        self.model.enqueue(
            job_id,
            queue=queue,
            task=task,
            arguments=arguments,
            priority=options.get("priority", settings.priority or 0),
            max_attempts=options.get("max_attempts") or by_task.get("max_attempts") or settings.max_attempts or attempts,
            timeout_s=timeout or settings.timeout_s,
            due=due,
            expires=None if expires_in is None else now + expires_in * SECOND,
            tags=tuple(options.get("tags", ())),
        )

    def enqueues(self, jobs: list[Any], way: str, at: int | None) -> None:
        jobs = [(task, arguments, queue, self.options(options, at)) for task, arguments, queue, options in jobs]
        with self.transaction(way, commits=True) as connection:
            ids = self.store_jobs(jobs, way, connection)
        for job_id, (task, arguments, queue, options) in zip(ids, jobs, strict=True):
            self.told_of(job_id, task, arguments, queue, options)
            if way in ("using", "by name"):
                self.model.refuse_at_once(job_id)

    def starts_worker(self, queues: tuple[str, ...] | None) -> None:
        worker = self.workshop.worker(self.workshop.name(), queues)
        assert self.store.workers.register(
            worker.name,
            host="here",
            pid=1,
            runtime_dir="/nowhere",
            queues=queues,
            digest=self.digest,
            expires_at_us=self.clock.now + LEASE_S * SECOND,
            now_us=self.clock.now,
        )
        self.model.register(worker.name, queues)
        self.workers.append(worker)

    def extends(self, worker: PlayedWorker) -> None:
        held = self.store.workers.extend(worker.name, expires_at_us=self.clock.now + LEASE_S * SECOND)
        assert held is self.model.extend(worker.name)
        if held:
            worker.extended_at = self.clock.now

    def backend_lost(self) -> None:
        self.workshop.backends.failed(BackendUnavailable("refused", backend="ollama"))
        self.model.backend_lost("ollama")

    def backend_answers(self, *, worked: bool) -> None:
        was_open = self.store.backends.answered("ollama", worked=worked, now_us=self.clock.now)
        assert was_open is self.model.backend_answered("ollama", worked=worked)

    def gate_of(self, worker: PlayedWorker) -> Any:
        assert worker.dispatcher is not None
        if "held" not in self.model.workers[worker.name]:
            self.decides(worker)
        return worker.dispatcher.rules

    def decides(self, worker: PlayedWorker) -> None:
        assert worker.dispatcher is not None
        worker.dispatcher.decide(force=True)
        self.model.decide(worker.name)

    def exchanges(self, worker: PlayedWorker, threads: int, coroutines: int) -> None:
        assert worker.dispatcher is not None
        batch, worker.ended = worker.ended, []
        suspects = worker.dispatcher.suspects
        late, leases = self.store.attempts.finish_and_claim(
            [outcome for outcome, _ in batch],
            worker_id=worker.name,
            queues=worker.dispatcher.plain if worker.may_claim() else (),
            rules=worker.dispatcher.rules,
            capacity=Capacity(threads, coroutines, ASYNCHRONOUS, suspects),
            now_us=self.clock.now,
        )
        self.compare_finish(batch, late)
        self.begins(worker, leases, self.model.claim(worker.name, {"thread": threads, "coroutine": coroutines}, suspects))

    def claims_for_devices(self, worker: PlayedWorker) -> None:
        assert worker.dispatcher is not None
        leases = list(worker.dispatcher.claim_for_devices())
        self.begins(worker, leases, self.model.claim_for_devices(worker.name))

    def stops_what_is_asked(self, worker: PlayedWorker, how: str) -> None:
        """A worker looks at what it must stop; `how` is how an attempt ends that is to make room."""
        with self.store.engine.lent() as connection:
            wanted = queries.stop_requests(connection, worker.name)
        expected = sorted(self.model.stop_requests(worker.name))
        assert sorted(wanted) == expected, f"to be stopped, as the store and as the model says: {sorted(wanted)}, {expected}"
        by_lease = {(attempt.lease.job_id, attempt.lease.lease): attempt for attempt in worker.running}
        for job_id, lease, is_cancelled in wanted:
            if (job_id, lease) in by_lease:
                self.ends(worker, by_lease[job_id, lease], "is stopped" if is_cancelled else how)

    def device_is(self, name: str, *, is_lost: bool) -> None:
        self.workshop.cards[name].is_lost = is_lost
        self.model.lost = self.model.lost - {name} | ({name} if is_lost else set())

    def reads_devices(self) -> None:
        for name, card in self.workshop.cards.items():
            self.store.backends.publish_reading(name, reading=card.read(), residents=None, now_us=self.clock.now)
            self.model.read_device(name)

    def begins(self, worker: PlayedWorker, leases: Sequence[Lease], expected: list[int]) -> None:
        claimed = [lease.job_id for lease in leases]
        assert claimed == expected, f"claimed in this order, as the store and as the model says: {claimed}, {expected}"
        for lease in leases:
            job = self.model.jobs[lease.job_id]
            assert (lease.lease, lease.attempt, lease.max_attempts) == (job["lease"], job["attempt"], job["max_attempts"])
            assert (lease.arguments, lease.timeout_s) == (job["arguments"], job["timeout_s"])
            assert lease.crashes == (job["crashes"] if job["suspect"] else None)
            worker.running.append(self.workshop.attempt(lease))

    def judged(self, attempt: Attempt, how: str) -> tuple[Outcome, Any]:
        """The outcome that a worker makes of what the task did, and the one that is documented."""
        ending = MAKES_ROOM if how == "makes room" else ENDINGS[how]
        lease = attempt.lease
        job = self.model.jobs.get(lease.job_id)
        before = {"attempt": lease.attempt, "max_attempts": lease.max_attempts, "task": lease.task, "cancel": False}
        if job is not None and self.model.holds_lease(lease.job_id, lease.lease):
            before = job
        expected = ending.expected(before, self.model.queues[lease.queue], self.clock.now)
        if ending.interruption is not None:
            attempt.interrupt("cancelled" if before["cancel"] and ending.interruption == "timed_out" else ending.interruption)
        error = None if ending.error is None else ending.error(self.clock.now)
        outcome = self.workshop.judge.outcome(attempt, ending.value, error)
        if expected["kind"] == "postponed" and expected["chance"]:
            due = getattr(outcome, "at_us", 0)
            assert expected["due"] - expected["chance"] <= due <= expected["due"]
            expected["due"] = due
        return outcome, expected

    def ends(self, worker: PlayedWorker, attempt: Attempt, how: str) -> None:
        outcome, expected = self.judged(attempt, how)
        worker.running.remove(attempt)
        if how == "finds its backend away":
            self.backend_lost()
        if attempt.lease.placement is None:
            worker.ended.append((outcome, expected))
        elif self.finishes([(outcome, expected)]):
            worker.clean_ups.append((attempt.lease.job_id, attempt.lease.lease))

    def finishes(self, batch: list[tuple[Outcome, Any]]) -> bool:
        late = self.store.attempts.finish([outcome for outcome, _ in batch], now_us=self.clock.now)
        self.compare_finish(batch, late)
        return not late

    def compare_finish(self, batch: list[tuple[Outcome, Any]], late: list[Lease]) -> None:
        expected = []
        for outcome, ended in sorted(batch, key=lambda item: item[1]["kind"] != "completed"):
            lease = outcome.lease
            if not self.model.finish(lease.job_id, lease.lease, ended):
                expected.append((lease.job_id, lease.lease))
        assert sorted((lease.job_id, lease.lease) for lease in late) == sorted(expected), "who came too late"

    def releases(self, item: tuple[int, int]) -> None:
        assert self.store.attempts.release_device(*item) is self.model.release(*item)

    def collects_abandoned(self, by: PlayedWorker) -> None:
        for name in sorted(self.model.abandoned_by()):
            self.rescues(PlayedWorker(name, 0), by, "none")

    def rescues(self, dead: PlayedWorker, by: PlayedWorker, executed: str) -> None:
        running = [attempt.lease.job_id for attempt in dead.running]
        executing = {"all": running, "none": [], "every second": running[::2], "not known": None}[executed]
        rescue = self.store.attempts.rescue(
            dead.name, by_worker=by.name, executing=executing, proof="a test", max_crashes=MAX_CRASHES, now_us=self.clock.now
        )
        found = rescue.orphans
        orphans = {job["id"]: job for job in self.model.rescue(dead.name, by.name, executing)}
        assert sorted(item.job_id for item in found) == sorted(orphans)
        for item in found:
            assert item.lease > orphans[item.job_id]["lease"], "the clean-up of the dead worker must be fenced off"
            assert item.worker_id == by.name
            orphans[item.job_id]["lease"] = item.lease
            by.clean_ups.append((item.job_id, item.lease))
        self.late = [*self.late, *dead.running][-12:]
        self.old_clean_ups += dead.clean_ups
        if dead in self.dead:
            self.dead.remove(dead)

    def prunes(self, state: str, age_s: int, limit: int) -> None:
        before = self.clock.now - age_s * SECOND
        prunable = self.model.prunable(state, before)
        count = self.store.jobs.prune(State(state), before_us=before, limit=limit)
        assert count == min(limit, len(prunable))
        with self.store.engine.lent() as connection:
            kept = {row[0] for row in connection.execute("SELECT id FROM jobs")}
        gone = [job for job in prunable if job["id"] not in kept]
        assert len(gone) == count
        # Which of those that finished at one moment go first is not said.
        assert [job["finished"] for job in gone] == [job["finished"] for job in prunable[:count]]
        for job in gone:
            del self.model.jobs[job["id"]]
            self.model.events.append(("job_removed", job["id"], job["queue"], {"state": state}))
            with pytest.raises(UnknownJob):
                self.gq.job(job["id"])

    def works(self, worker: PlayedWorker, how: list[str], leaves: int) -> None:
        """A worker does a whole round: it extends, ends some attempts, cleans up all but some, decides and claims."""
        self.extends(worker)
        for ending in how:
            if worker.running:
                self.ends(worker, worker.running[0], ending)
        while len(worker.clean_ups) > leaves:
            self.releases(worker.clean_ups.pop(0))
        self.reads_devices()
        self.decides(worker)
        self.exchanges(worker, 3, 2)
        self.claims_for_devices(worker)


@functools.cache
def _engine(path: Path) -> Engine:
    """The application's own engine for the queue's file."""
    return create_engine(f"sqlite:///{path}", poolclass=NullPool)
