"""Owns short words for what the store's tests do to jobs; every time is NOW plus seconds, and no clock is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gpuqueue.domain.answers import Demand, Placement
from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.job import Extras, Job, JobErrorRecord, JobStatus, Lease, NewJob, State
from gpuqueue.domain.outcomes import Completed, Crashed, Ended, Postponed
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.store.store import Store

NOW_US = 1_700_000_000_000_000
GB = 10**9
CARD = DeviceSettings("gpu0", budget_bytes=5 * GB)
BOOM = JobErrorRecord("failed", "boom")


def at(seconds: float) -> int:
    return NOW_US + int(seconds * 1e6)


def capacity_for(count: int) -> Capacity:
    return Capacity(count)


class Rows:
    """A store, its queues, and one worker `w` that serves all of them."""

    def __init__(self, store: Store, *, worker: str = "w") -> None:
        self.store = store
        self.queues: dict[str, QueueSettings] = {}
        self.worker = worker
        self._registered: set[str] = set()
        self.register(worker)

    def register(self, worker: str, *, queues: tuple[str, ...] | None = None, expires_s: float = 1e6) -> None:
        self._registered.add(worker)
        with self.store.engine.lent() as connection:
            agreed = connection.execute("SELECT digest FROM configuration").fetchone()
        self.store.workers.register(
            worker,
            host="here",
            pid=1,
            queues=queues,
            digest="d" if agreed is None else agreed[0],
            runtime_dir=str(self.store.runtime_dir),
            expires_at_us=at(expires_s),
            now_us=NOW_US,
        )

    def _own(self, worker: str | None) -> str:
        """The worker that claims; it begins with its first claim."""
        name = worker or self.worker
        if name not in self._registered:
            self.register(name)
        return name

    def queue(self, name: str, **settings: Any) -> QueueSettings:
        self.queues[name] = QueueSettings(name, **settings)
        self.store.queues.ensure(name)
        return self.queues[name]

    def rules(self, *held: str, parallel: Mapping[str, int] = MappingProxyType({})) -> ClaimRules:
        return ClaimRules(frozenset(held), dict(self.queues), CARD.budget_bytes, parallel)

    def enqueue(self, queue: str = "work", *, s: float = 0, due_s: float | None = None, **options: Any) -> int:
        if queue not in self.queues:
            self.queue(queue)
        if "expires_s" in options:
            options["expires_at_us"] = at(options.pop("expires_s"))
        arguments, task = options.pop("arguments", "{}"), options.pop("task", "app.task")
        if due_s is not None:
            options["scheduled_at_us"] = at(due_s)
        plain = {name: options.pop(name) for name in ("priority", "max_attempts") if name in options}
        extras = Extras(**options) if options else None
        return self.store.jobs.enqueue(NewJob(queue, task, arguments, at(s), **plain, extras=extras))

    def enqueue_sized(self, queue: str, gb: float, model: str = "", **options: Any) -> int:
        job_id = self.enqueue(queue, **options)
        self.store.jobs.set_demands([(job_id, Demand(int(gb * GB), model))], largest_bytes=CARD.budget_bytes)
        return job_id

    def claim(
        self,
        *queues: str,
        limit: int = 100,
        s: float = 0,
        worker: str | None = None,
        held: Sequence[str] = (),
        suspects: Sequence[int] = (),
    ) -> list[Lease]:
        wanted = [self.queues[name] for name in queues or self.queues]
        _, leases = self.store.attempts.finish_and_claim(
            (),
            worker_id=self._own(worker),
            queues=wanted,
            rules=self.rules(*held),
            capacity=capacity_for(limit)._replace(suspects=tuple(suspects)),
            now_us=at(s),
        )
        return leases

    def claim_one(self, queue: str = "work", **options: Any) -> Lease:
        (lease,) = self.claim(queue, limit=1, **options)
        return lease

    def place(
        self, job_id: int, gb: float | None = None, *, s: float = 0, device: DeviceSettings = CARD, held: Sequence[str] = (),
        worker: str | None = None, seen: Job | None = None, parallel: int | None = None, **more: Any,
    ) -> Lease | None:  # fmt: skip
        job = seen or self.job(job_id)
        return self.store.attempts.claim_placed(
            job,
            Placement(device.name, job.demand_bytes if gb is None else int(gb * GB)),
            worker_id=self._own(worker),
            queue=self.queues[job.queue],
            device=device,
            rules=self.rules(*held, parallel={} if parallel is None else {device.name: parallel}),
            now_us=at(s),
            **more,
        )

    def placed(self, job_id: int, gb: float | None = None, **options: Any) -> Lease:
        lease = self.place(job_id, gb, **options)
        assert lease is not None
        return lease

    def complete(self, lease: Lease, result: str = "null", *, s: float = 1) -> bool:
        """Finish a lease; returns whether it was still held."""
        return not self.store.attempts.finish([Completed(lease, result)], now_us=at(s))

    def end(self, lease: Lease, state: State = State.DISCARDED, *, s: float = 1) -> bool:
        return not self.store.attempts.finish([Ended(lease, state, BOOM)], now_us=at(s))

    def postpone(self, lease: Lease, outcome: str = "retried", *, due_s: float = 60, s: float = 1, **rest: Any) -> bool:
        return not self.store.attempts.finish([Postponed(lease, outcome, at(due_s), **rest)], now_us=at(s))

    def crash(self, lease: Lease, *, last: bool = False, s: float = 1) -> bool:
        """End a lease by the death of its process; returns whether it was still held."""
        state = State.DISCARDED if last else State.AVAILABLE
        return not self.store.attempts.finish([Crashed(lease, state, BOOM)], now_us=at(s))

    def suspects(self, queue: str = "work") -> list[int]:
        """The ids of the suspects that may be claimed, in order."""
        with self.store.reading() as reads:
            return [job_id for job_id, _ in reads.suspects(queue, limit=100)]

    def rescue(
        self, dead: str = "w", *, by: str = "rescuer", executing: Sequence[int] | None = (), s: float = 2, max_crashes: int = 3
    ) -> list[Any]:
        found = self.store.attempts.rescue(
            dead, by_worker=by, executing=executing, proof="a test says so", max_crashes=max_crashes, now_us=at(s)
        )
        return list(found.orphans)

    def job(self, job_id: int) -> Job:
        return job_of(self.store, job_id)

    def state(self, job_id: int) -> State:
        return self.job(job_id).state

    def one(self, statement: str, *values: Any) -> Any:
        """The first column of the first row."""
        with self.store.engine.lent() as connection:
            return connection.execute(statement, values).fetchone()[0]


def job_of(store: Store, job_id: int) -> Job:
    with store.snapshot() as reads:
        return reads.job(job_id)


def status_of(store: Store, job_id: int) -> JobStatus:
    with store.snapshot() as reads:
        return reads.status(job_id)


def assert_counters_are_true(store: Store) -> None:
    """The counters of finished jobs equal what a count over all the rows finds."""
    with store.engine.lent() as connection:
        counted = {
            (queue, state): count
            for queue, state, count in connection.execute(
                "SELECT queue, state, count(*) FROM jobs WHERE state IN ('completed', 'cancelled', 'discarded') GROUP BY 1, 2"
            )
        }
        kept = {(queue, state): count for queue, state, count in connection.execute("SELECT * FROM counters WHERE count <> 0")}
    assert kept == counted
