"""Owns the state machine: its rules play clients, workers, backends and time against the real store and the model at once.

After each step everything that can be observed is compared with the model. At the end of each run everything comes to
rest: the backend is back, one worker serves all, time passes, and every job must end, once, and nothing stay held.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from gpuqueue import JobCancelled, JobExpired, JobFailed, ServiceUnavailable, StateError, UnknownJob
from gpuqueue.domain import Event, Job, Lease, Placement, State
from gpuqueue.errors import BackendUnavailable
from gpuqueue.settings import settings_digest
from gpuqueue.store import queries
from gpuqueue.store.claims import COROUTINE, THREAD, Room
from gpuqueue.store.outcomes import Outcome, abandoned_by, reservations
from gpuqueue.units import from_us, to_us
from gpuqueue.worker.attempt import Attempt
from tests import history
from tests.properties import model as told
from tests.properties.endings import ENDINGS
from tests.properties.model import FINISHED, MAX_CRASHES, SECOND, WAITING, Model
from tests.properties.scene import (
    CARDS,
    GB,
    GEMMA,
    NOMIC,
    ON_DEVICES,
    PLAIN,
    UNKNOWN,
    Clock,
    PlayedWorker,
    Workshop,
    demand_of,
    kind_of,
    open_queue,
)

PICK = st.integers(0, 997)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from([-1, 0, 3]),
        "max_attempts": st.sampled_from([1, 2, 4]),
        "timeout": st.sampled_from(["50s", 2]),
        # Many jobs that never start would leave little to happen.
        "expires_in": st.sampled_from([*[None] * 8, "20s", "5m", 0]),
        "tags": st.sampled_from([["a"], ["a", "b"]]),
        "delay": st.sampled_from([*[None] * 5, "10s", 90, "0s"]),
    },
)
PLAIN_JOBS = st.tuples(
    st.sampled_from(["work", "work", "awork", "picky"]),
    st.fixed_dictionaries({"n": st.integers(0, 3)}),
    st.sampled_from([None, *PLAIN]),
    OPTIONS,
)
COMPUTING_JOBS = st.tuples(
    st.just("compute"),
    st.fixed_dictionaries({"gb": st.sampled_from([0.5, 1, 1.003, 1.2, 2, 3, 5, 9]), "model": st.sampled_from(["", "m", "n"])}),
    st.sampled_from([None, *ON_DEVICES]),
    OPTIONS,
)
REQUESTS = st.tuples(
    st.just("ollama.generate"),
    st.fixed_dictionaries({"model": st.sampled_from([GEMMA, NOMIC, UNKNOWN]), "prompt": st.just("x")}),
    st.sampled_from(["ai", "batch"]),
    OPTIONS,
)
JOBS = PLAIN_JOBS | COMPUTING_JOBS | REQUESTS
WAYS = ["using", "by name", "many", "connection", "session", "many in a session"]
EXECUTED = ["all", "none", "every second", "not known"]


def step(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule; a microsecond passes before it, and the machine counts as healthy again only when it agrees afterwards."""

    def wrap(function: Callable[..., None]) -> Any:
        @rule(**strategies)
        @functools.wraps(function)
        def run(self: Machine, **drawn: Any) -> None:
            self.is_healthy = False
            self.tick(1)
            function(self, **drawn)

        return run

    return wrap


def choose(items: Sequence[Any], pick: int) -> Any:
    return items[pick % len(items)]


class Machine(RuleBasedStateMachine):
    """`folder` is where the file is, the same for each run."""

    folder: ClassVar[Path]
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
            kind_of=kind_of,
        )
        self.workshop = Workshop(self.gq, self.clock)
        self.workers: list[PlayedWorker] = []
        self.dead: list[PlayedWorker] = []
        self.late: list[Attempt] = []  # attempts whose worker died; the last ones may still end
        self.old_clean_ups: list[tuple[int, int]] = []
        self.events: list[Event] = []
        self.digest = ""
        self.store.add_follower(history.FOLLOWER)
        self.accept()
        self.starts_worker(None)
        self.enqueues(jobs, "many", None)

    # --- clients ---

    # What makes jobs and works on them comes in several rules, because each rule is as likely as any other.

    @step(jobs=st.lists(JOBS, min_size=1, max_size=4), way=st.sampled_from(WAYS), at=st.sampled_from([None, None, -10, 30]))
    def enqueue(self, jobs: list[Any], way: str, at: int | None) -> None:
        self.enqueues(jobs, way, at)

    @step(jobs=st.lists(PLAIN_JOBS, min_size=1, max_size=4))
    def enqueue_plain_jobs(self, jobs: list[Any]) -> None:
        self.enqueues(jobs, "using", None)

    @step(jobs=st.lists(COMPUTING_JOBS, min_size=1, max_size=4))
    def enqueue_computing_jobs(self, jobs: list[Any]) -> None:
        self.enqueues(jobs, "by name", None)

    @step(jobs=st.lists(REQUESTS, min_size=1, max_size=4))
    def enqueue_requests(self, jobs: list[Any]) -> None:
        self.enqueues(jobs, "using", None)

    @step(jobs=st.lists(JOBS, min_size=1, max_size=2), way=st.sampled_from(["connection", "session", "many in a session"]))
    def enqueue_and_roll_back(self, jobs: list[Any], way: str) -> None:
        with self.transaction(way, commits=False) as connection:
            self.store_jobs(jobs, way, connection)

    @step(pick=PICK)
    def cancel(self, pick: int) -> None:
        if (job_id := self.any_job(pick)) is not None:
            before = self.model.cancel(job_id)
            assert self.gq.job(job_id).cancel() is (before not in FINISHED)

    @step(pick=PICK)
    def retry(self, pick: int) -> None:
        if (job_id := self.any_job(pick)) is None:
            return
        if self.model.may_retry(job_id):
            self.model.retry(job_id)
            self.gq.job(job_id).retry()
        else:
            with pytest.raises(StateError):
                self.gq.job(job_id).retry()

    @step(queue=st.sampled_from([*PLAIN, *ON_DEVICES]), for_s=st.sampled_from([None, 30, 400, "resume", "resume"]))
    def pause_or_resume(self, queue: str, for_s: Any) -> None:
        if for_s == "resume":
            assert self.gq.resume(queue, by="me") is self.model.resume(queue)
            return
        self.model.pause(queue, None if for_s is None else self.clock.now + for_s * SECOND)
        until = for_s if for_s != 400 else self.gq.now() + timedelta(seconds=400)
        self.gq.pause(queue, until=until, reason="a test", by="me")

    @step(pick=PICK)
    def a_caller_waits(self, pick: int) -> None:
        """Who waits for a result ends the job whose time is over, and the one that nobody can run."""
        if (job_id := self.any_job(pick, *WAITING)) is None:
            return
        if pick % 2:
            refused = self.store.refuse_one(job_id, message="nobody serves it", now_us=self.clock.now)
            assert refused is self.model.refuse_one(job_id)
        else:
            self.store.move_due(now_us=self.clock.now)
            self.model.move_due()

    @step(seconds=st.sampled_from([1, 5, 12, 25, 31, 60, 300, 3600, 20_000]))
    def time_passes(self, seconds: int) -> None:
        self.tick(seconds * SECOND)

    @step(state=st.sampled_from(FINISHED), age_s=st.sampled_from([0, 60]), limit=st.sampled_from([1, 3, 1000]))
    def prune(self, state: str, age_s: int, limit: int) -> None:
        before = self.clock.now - age_s * SECOND
        prunable = self.model.prunable(state, before)
        count = self.store.prune(State(state), before_us=before, limit=limit)
        assert count == min(limit, len(prunable))
        with self.store.reading() as connection:
            kept = {row[0] for row in connection.execute("SELECT id FROM jobs")}
        gone = [job for job in prunable if job["id"] not in kept]
        assert len(gone) == count
        # Which of those that finished at one moment go first is not said.
        assert [job["finished"] for job in gone] == [job["finished"] for job in prunable[:count]]
        for job in gone:
            del self.model.jobs[job["id"]]
            with pytest.raises(UnknownJob):
                self.gq.job(job["id"])

    # --- workers ---

    @precondition(lambda self: len(self.workers) < 3)
    @step(queues=st.sampled_from([None, None, (*PLAIN,), (*ON_DEVICES,), ("narrow", "batch")]))
    def start_worker(self, queues: tuple[str, ...] | None) -> None:
        self.starts_worker(queues)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, how=st.lists(st.sampled_from(sorted(ENDINGS)), max_size=3), leaves=st.integers(0, 3))
    def a_worker_works(self, pick: int, how: list[str], leaves: int) -> None:
        self.works(choose(self.workers, pick), how, leaves)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, how=st.sampled_from(sorted(ENDINGS)))
    def a_worker_works_on_jobs_that_all_end_alike(self, pick: int, how: str) -> None:
        self.works(choose(self.workers, pick), [how] * 4, 0)

    @precondition(lambda self: self.workers)
    @step(pick=PICK)
    def a_worker_only_claims(self, pick: int) -> None:
        self.works(choose(self.workers, pick), [], 9)

    def works(self, worker: PlayedWorker, how: list[str], leaves: int) -> None:
        """A worker does a whole round: it extends, ends some attempts, cleans up all but some, decides and claims."""
        self.extends(worker)
        for ending in how:
            if worker.running:
                self.ends(worker, worker.running[0], ending)
        while len(worker.clean_ups) > leaves:
            self.releases(worker.clean_ups.pop(0))
        self.decides(worker)
        self.exchanges(worker, 3, 2)
        self.claims_for_devices(worker)

    @precondition(lambda self: self.workers or self.dead)
    @step(pick=PICK)
    def extend(self, pick: int) -> None:
        self.extends(choose([*self.workers, *self.dead], pick))

    @precondition(lambda self: self.workers)
    @step(pick=PICK, threads=st.integers(0, 4), coroutines=st.integers(0, 2), knows=st.booleans())
    def exchange(self, pick: int, threads: int, coroutines: int, knows: bool) -> None:
        """A worker writes what has ended and claims jobs without a device, with a fresh or an old decision."""
        worker = choose(self.workers, pick)
        if knows:
            self.decides(worker)
        self.exchanges(worker, threads, coroutines)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, extends=st.booleans())
    def claim_for_devices(self, pick: int, extends: bool) -> None:
        worker = choose(self.workers, pick)
        if extends:
            self.extends(worker)
        self.claims_for_devices(worker)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, other=PICK, device=PICK, reserved=st.sampled_from([0, GB // 2, GB, 3 * GB, 5 * GB, 6 * GB]))
    def claim_what_was_proposed_wrongly(self, pick: int, other: int, device: int, reserved: int) -> None:
        """A claim whose proposal is old or wrong: everything that must hold is asked again."""
        worker = choose(self.workers, pick)
        waiting = [job["id"] for job in self.model.jobs.values() if job["queue"] in ON_DEVICES]
        if not waiting:
            return
        job_id = choose(waiting, other)
        settings = choose(self.workshop.settings.devices, device)
        lease = self.store.claim_placed(
            job_id,
            Placement(settings.name, reserved),
            worker_id=worker.name,
            queue=self.workshop.settings.queues[self.model.jobs[job_id]["queue"]],
            device=settings,
            gate=self.gate_of(worker),
            now_us=self.clock.now,
        )
        claimed = self.model.claim_placed(worker.name, job_id, settings.name, reserved)
        self.begins(worker, [] if lease is None else [lease], [job_id] if claimed else [])

    @precondition(lambda self: any(worker.running for worker in self.workers))
    @step(pick=PICK, how=st.sampled_from(sorted(ENDINGS)), writes=st.booleans())
    def end_attempt(self, pick: int, how: str, writes: bool) -> None:
        worker, attempt = choose([(worker, attempt) for worker in self.workers for attempt in worker.running], pick)
        self.ends(worker, attempt, how)
        if writes and attempt.lease.placement is None:
            self.exchanges(worker, 0, 0)

    @precondition(lambda self: self.late)
    @step(pick=PICK, how=st.sampled_from(sorted(ENDINGS)), beside=st.booleans())
    def a_late_attempt_ends(self, pick: int, how: str, beside: bool) -> None:
        """An attempt of a dead worker ends, in one transaction with one of a living worker, which must not be hurt."""
        late = choose(self.late, pick)
        outcome, expected = self.judged(late, how)
        batch = [(outcome, expected)]
        for worker in self.workers:
            if beside and worker.ended:
                batch.append(worker.ended.pop())
        self.finishes(batch)

    @precondition(lambda self: self.late or any(worker.running for worker in self.workers))
    @step(
        pick=PICK,
        text=st.sampled_from(["", "piece"]),
        line=st.sampled_from(["", "a line"]),
        progress=st.sampled_from([None, (0.25, "quarter"), (1.0, "")]),
    )
    def say(self, pick: int, text: str, line: str, progress: tuple[float, str] | None) -> None:
        attempt = choose([*(attempt for worker in self.workers for attempt in worker.running), *self.late], pick)
        lease = attempt.lease
        if text:
            self.workshop.output.emit(lease, text)
        if line:
            self.workshop.output.log(lease, self.clock.now, line)
        if progress is not None:
            self.workshop.output.progress(lease, *progress)
        self.workshop.output.flush(lease)
        self.model.report(lease.job_id, lease.lease, text=text, line=line, progress=progress)

    @precondition(lambda self: self.old_clean_ups or any(worker.clean_ups for worker in self.workers))
    @step(pick=PICK)
    def clean_up(self, pick: int) -> None:
        """A clean-up is verified, perhaps one whose lease was lost meanwhile."""
        mine = [(worker.clean_ups, item) for worker in self.workers for item in worker.clean_ups]
        clean_ups, item = choose(mine + [(self.old_clean_ups, item) for item in self.old_clean_ups], pick)
        if clean_ups is not self.old_clean_ups:
            clean_ups.remove(item)
            self.old_clean_ups = [*self.old_clean_ups[-5:], item]
        self.releases(item)

    # --- what goes wrong ---

    @precondition(lambda self: self.workers)
    @step(pick=PICK)
    def a_worker_dies(self, pick: int) -> None:
        worker = choose(self.workers, pick)
        self.workers.remove(worker)
        self.dead.append(worker)

    @precondition(lambda self: any(worker.running or worker.clean_ups for worker in self.workers))
    @step(
        pick=PICK,
        executed=st.sampled_from(EXECUTED),
        works=st.booleans(),
        how=st.none() | st.sampled_from(sorted(ENDINGS)),
    )
    def a_busy_worker_dies_and_is_rescued(self, pick: int, executed: str, works: bool, how: str | None) -> None:
        """Its jobs may be at work elsewhere already when it ends them after all."""
        dead = choose([worker for worker in self.workers if worker.running or worker.clean_ups], pick)
        self.workers.remove(dead)
        self.starts_worker(None)
        self.rescues(dead, self.workers[-1], executed)
        if works:
            self.works(self.workers[-1], [], pick % 3)
        if how is not None:
            self.finishes([*dead.ended, *(self.judged(attempt, how) for attempt in dead.running)])
            for item in dead.clean_ups:
                self.releases(item)

    @precondition(lambda self: self.workers and self.dead)
    @step(pick=PICK, by=PICK, executed=st.sampled_from(EXECUTED))
    def rescue(self, pick: int, by: int, executed: str) -> None:
        self.rescues(choose(self.dead, pick), choose(self.workers, by), executed)

    @precondition(lambda self: self.workers)
    @step(pick=PICK, how=st.sampled_from(["is given back", "returns"]), cleans=st.booleans())
    def a_worker_stops(self, pick: int, how: str, cleans: bool) -> None:
        """In good order: its jobs end or go back; a clean-up that is not verified is left to others."""
        worker = choose(self.workers, pick)
        for attempt in list(worker.running):
            self.ends(worker, attempt, how)
        self.finishes(worker.ended)
        for item in worker.clean_ups if cleans else []:
            self.releases(item)
        self.old_clean_ups += [] if cleans else worker.clean_ups
        self.store.unregister_worker(worker.name, now_us=self.clock.now)
        self.model.unregister(worker.name)
        self.workers.remove(worker)

    @precondition(lambda self: self.workers and self.model.abandoned_by())
    @step(pick=PICK)
    def what_was_abandoned_is_collected(self, pick: int) -> None:
        self.collects_abandoned(choose(self.workers, pick))

    @step(how=st.sampled_from(["away", "back", "works"]))
    def the_backend_is(self, how: str) -> None:
        if how == "away":
            self.backend_lost()
        else:
            self.backend_answers(worked=how == "works")

    @step()
    def accept_another_configuration(self) -> None:
        self.accept()
        self.model.forget_demands()

    # --- what is observed ---

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "model"):
            return
        model = self.model
        handles = self.gq.jobs(limit=10_000)
        assert [handle.id for handle in handles] == sorted(model.jobs, reverse=True)
        for handle in handles:
            found, expected = as_told(handle.record), model.jobs[handle.id]
            assert found == {key: expected[key] for key in found}, f"job {handle.id}"
        assert self.gq.counts() == model.counts()
        holds = {queue: {hold.reason: hold.until and to_us(hold.until) for hold in found} for queue, found in self.gq.holds().items()}
        assert holds == model.holds()
        self.compare_events()
        with self.store.reading() as connection:
            assert set(abandoned_by(connection)) == model.abandoned_by()
            taken = {item.job_id: (item.device, item.reserved_bytes, item.running) for item in reservations(connection)}
        assert taken == {
            job["id"]: (job["device"], job["reserved"], job["state"] == "running")
            for job in model.jobs.values()
            if job["device"] is not None
        }
        self.is_healthy = True

    @step(pick=PICK)
    def look_closely(self, pick: int) -> None:
        if (job_id := self.any_job(pick)) is not None:
            self.looks_closely(job_id)
        queue, state = choose([None, *self.model.queues], pick), choose([None, *State], pick)
        after = choose([None, *self.model.jobs], pick)
        found = [handle.id for handle in self.gq.jobs(queue=queue, state=state, limit=1 + pick % 5, after=after)]
        jobs = [job for job in self.model.jobs.values() if queue in (None, job["queue"]) and state in (None, job["state"])]
        ids = sorted((job["id"] for job in jobs if after is None or job["id"] < after), reverse=True)
        assert found == ids[: 1 + pick % 5]

    def looks_closely(self, job_id: int) -> None:
        job, handle = self.model.jobs[job_id], self.gq.job(job_id)
        explanation = handle.explain()
        assert str(explanation).startswith(f"job {job_id}: ")
        reasons = [hold.reason for hold in explanation.reasons]
        assert sorted(reasons) == sorted(self.model.reasons(job_id) if job["state"] in WAITING else ())
        with self.store.reading() as connection:
            assert [line["outcome"] for line in queries.timeline(connection, job_id)] == job["outcomes"]
            assert [(lease, text) for _seq, lease, text in queries.chunks_after(connection, job_id, 0)] == job["output"]
        assert [(line.lease, line.message) for line in handle.logs()] == job["lines"]
        if job["state"] == "completed":
            assert handle.result(timeout_s=0) == job["result"]
        elif job["state"] in FINISHED:
            kinds = {"expired": JobExpired, "unavailable": ServiceUnavailable}
            with pytest.raises(JobCancelled if job["state"] == "cancelled" else kinds.get(job["code"], JobFailed)):
                handle.result(timeout_s=0)

    def compare_events(self) -> None:
        events = []
        while found := self.store.take_events(history.FOLLOWER):
            events += found
        self.events += events
        expected, self.model.events = self.model.events, []
        seen = [(event.name, event.job_id, event.queue, event.data) for event in events]
        expected_by_job, seen_by_job = told.by_job(expected), told.by_job(seen)
        assert seen_by_job.keys() == expected_by_job.keys()
        for job_id, mine in expected_by_job.items():
            keys = [event[3].keys() for event in mine]
            theirs = [
                (*event[:3], {key: event[3].get(key) for key in wanted})
                for event, wanted in zip(seen_by_job[job_id], keys, strict=True)
            ]
            assert theirs == mine

    # --- the end ---

    def teardown(self) -> None:
        if not hasattr(self, "gq"):
            return
        try:
            if self.is_healthy:
                self.come_to_rest()
        finally:
            self.gq.close()

    def come_to_rest(self) -> None:
        """Whatever happened: with the backend back, one worker that serves all, and time, every job ends and nothing is held."""
        self.workers, self.dead = [], [*self.dead, *self.workers]
        for queue in self.model.queues:
            self.gq.resume(queue, by="me")
            self.model.resume(queue)
        self.backend_answers(worked=True)
        self.starts_worker(None)
        (last,) = self.workers
        for dead in list(self.dead):
            self.rescues(dead, last, "none")
        self.collects_abandoned(last)
        for _ in range(300):
            unplaceable = (job for job in self.model.jobs.values() if job["sized"] and job["bytes"] > self.model.largest)
            never = [job for job in unplaceable if job["state"] not in FINISHED]
            if all(job["state"] in FINISHED or job in never for job in self.model.jobs.values()) and not last.clean_ups:
                break
            self.tick(600 * SECOND)
            self.extends(last)
            self.decides(last)
            self.exchanges(last, 8, 8)
            self.claims_for_devices(last)
            for attempt in list(last.running):
                self.ends(last, attempt, "returns")
            for item in last.clean_ups:
                self.releases(item)
            last.clean_ups.clear()
            self.agree()
        waiting = {job["id"]: job["state"] for job in self.model.jobs.values() if job["state"] not in FINISHED and job not in never}
        assert not waiting, f"jobs that never end: {waiting}"
        for job_id, count in self.model.finishes.items():
            assert count <= 1 + self.model.retries[job_id], f"job {job_id} finished {count} times"
        assert not any(device.reservations for device in self.gq.view().devices.values()), "a device stays reserved"
        assert {queue: holds for queue, holds in self.gq.holds().items() if holds and holds[0].reason != "window"} == {}
        for job in self.model.jobs.values():
            self.looks_closely(job["id"])
        settings = self.workshop.settings
        with self.store.reading() as connection:
            history.check(
                self.events,
                connection,
                queues=settings.queues.values(),
                devices=settings.devices,
                completed=[job["id"] for job in self.model.jobs.values() if job["state"] == "completed"],
                unfinished=[job["id"] for job in never],
                retried=self.model.retries,
            )

    # --- what rules have in common ---

    def tick(self, us: int) -> None:
        self.clock.now += us
        self.model.now = self.clock.now

    def accept(self) -> None:
        shared = self.gq.shared()
        self.digest = f"{settings_digest(shared)} {self.clock.now}"
        self.store.accept_configuration(digest=self.digest, settings=shared, force=True, now_us=self.clock.now)

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
            with self.store.reading() as reading:
                newest = reading.execute("SELECT coalesce(max(id), 0) FROM jobs").fetchone()[0]
            assert newest <= self.model.newest, "a job is seen before its transaction has committed"
            connection.commit() if commits else connection.rollback()

    def told_of(self, job_id: int, task: str, arguments: Any, queue: str | None, options: Mapping[str, Any]) -> None:
        """Tell the model of a stored job: what is asked for goes before the task's, and that before the queue's."""
        by_task: dict[str, Any] = {"work": {}, "awork": {"max_attempts": 2}, "picky": {"max_attempts": 3}}.get(task, {})
        queue = queue or {"picky": "narrow", "compute": "train"}.get(task, "mail")
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

    def starts_worker(self, queues: tuple[str, ...] | None) -> None:
        worker = self.workshop.worker(self.workshop.name(), queues)
        assert self.store.register_worker(
            worker.name,
            host="here",
            pid=1,
            queues=queues,
            digest=self.digest,
            expires_at_us=self.clock.now + told.LEASE_S * SECOND,
            now_us=self.clock.now,
        )
        self.model.register(worker.name, queues)
        self.workers.append(worker)

    def extends(self, worker: PlayedWorker) -> None:
        held = self.store.extend(worker.name, expires_at_us=self.clock.now + told.LEASE_S * SECOND)
        assert held is self.model.extend(worker.name)
        if held:
            worker.extended_at = self.clock.now

    def backend_lost(self) -> None:
        self.workshop.backends.failed(BackendUnavailable("refused", backend="ollama"))
        self.model.backend_lost("ollama")

    def backend_answers(self, *, worked: bool) -> None:
        was_open = self.store.backend_answered("ollama", worked=worked, now_us=self.clock.now)
        assert was_open is self.model.backend_answered("ollama", worked=worked)

    def gate_of(self, worker: PlayedWorker) -> Any:
        assert worker.dispatcher is not None
        if "held" not in self.model.workers[worker.name]:
            self.decides(worker)
        return worker.dispatcher.gate

    def decides(self, worker: PlayedWorker) -> None:
        assert worker.dispatcher is not None
        worker.dispatcher.decide(force=True)
        self.model.decide(worker.name)

    def exchanges(self, worker: PlayedWorker, threads: int, coroutines: int) -> None:
        assert worker.dispatcher is not None
        room = {THREAD: threads, COROUTINE: coroutines}
        batch, worker.ended = worker.ended, []
        late, leases = worker.dispatcher.exchange([outcome for outcome, _ in batch], room=Room(room, kind_of))
        self.compare_finish(batch, late)
        self.begins(worker, leases, self.model.claim(worker.name, room))

    def claims_for_devices(self, worker: PlayedWorker) -> None:
        assert worker.dispatcher is not None
        leases = worker.dispatcher.claim_for_devices()
        self.begins(worker, leases, self.model.claim_for_devices(worker.name))

    def begins(self, worker: PlayedWorker, leases: Sequence[Lease], expected: list[int]) -> None:
        assert [lease.job_id for lease in leases] == expected, "the jobs that were claimed, in their order"
        for lease in leases:
            job = self.model.jobs[lease.job_id]
            assert (lease.lease, lease.attempt, lease.max_attempts) == (job["lease"], job["attempt"], job["max_attempts"])
            assert (lease.arguments, lease.timeout_s) == (job["arguments"], job["timeout_s"])
            worker.running.append(self.workshop.attempt(lease))

    def judged(self, attempt: Attempt, how: str) -> tuple[Outcome, Any]:
        """The outcome that a worker makes of what the task did, and the one that is documented."""
        ending = ENDINGS[how]
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
        late = self.store.finish([outcome for outcome, _ in batch], now_us=self.clock.now)
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
        assert self.store.release_device(*item) is self.model.release(*item)

    def collects_abandoned(self, by: PlayedWorker) -> None:
        for name in sorted(self.model.abandoned_by()):
            self.rescues(PlayedWorker(name, 0), by, "none")

    def rescues(self, dead: PlayedWorker, by: PlayedWorker, executed: str) -> None:
        running = [attempt.lease.job_id for attempt in dead.running]
        executing = {"all": running, "none": [], "every second": running[::2], "not known": None}[executed]
        found = self.store.rescue(
            dead.name, by_worker=by.name, executing=executing, proof="a test", max_crashes=MAX_CRASHES, now_us=self.clock.now
        )
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


@functools.cache
def _engine(path: Path) -> Engine:
    """The application's own engine for the queue's file."""
    return create_engine(f"sqlite:///{path}", poolclass=NullPool)


def as_told(job: Job) -> dict[str, Any]:
    """A job as its handle shows it, in the model's words."""

    def us(moment: Any) -> int | None:
        return None if moment is None else to_us(moment)

    found = {
        "id": job.id, "queue": job.queue, "task": job.task, "state": str(job.state), "priority": job.priority,
        "attempt": job.attempt, "max_attempts": job.max_attempts, "lease": job.lease, "crashes": job.crashes,
        "enqueued": us(job.enqueued_at), "due": us(job.scheduled_at), "started": us(job.started_at),
        "finished": us(job.finished_at), "expires": us(job.expires_at), "timeout_s": job.timeout_s, "worker": job.worker_id,
        "model": job.model, "bytes": job.demand_bytes, "device": job.device, "reserved": job.reserved_bytes,
        "arguments": job.arguments, "tags": job.tags, "code": job.error.code if job.error else None,
        "progress": job.progress, "note": job.progress_note,
    }  # fmt: skip
    # What is said of a job that runs or waits says nothing once it does neither.
    if job.state is State.RUNNING:
        found["cancel"] = job.cancel_requested
    if job.state is State.RETRYABLE:
        found["waiting_for"] = job.waiting_for
    return found


__all__ = ["Machine", "json"]
