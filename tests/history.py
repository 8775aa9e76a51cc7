"""Owns the checks of a history, whoever made it: what a follower was told, and the rows, must agree with every promise.

A test follows the file from before its first job; nothing is run here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuqueue import GPUQueue
from gpuqueue.domain.job import Event
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.store.sqlite import integrity
from gpuqueue.store.sqlite.events import to_event
from gpuqueue.store.sqlite.outcomes import reservations

FOLLOWER = "history"
FINISHED = ("completed", "cancelled", "discarded")
MOVES = ("attempt_started", "attempt_finished", "job_finished", "job_promoted")


class History:
    """Follows a queue's file from now on, whichever processes work on it."""

    def __init__(self, gq: GPUQueue, *, is_kept: bool = False) -> None:
        """`is_kept` says that somebody else followed from before the first job, and all events are still there."""
        self._gq = gq
        if not is_kept:
            gq.store.followers.add(FOLLOWER)

    def events(self) -> list[Event]:
        with self._gq.store.engine.lent() as connection:
            return events_of(connection)

    def check(self, *, completed: Iterable[int] = (), unfinished: Collection[int] = ()) -> None:
        """Check what happened so far by the settings that the workers agreed on; `check` says what is meant by the rest."""
        settings = self._gq.agreed_settings()
        with self._gq.store.engine.lent() as connection:
            connection.execute("BEGIN")  # events and rows of one moment: workers may go on meanwhile
            check(
                events_of(connection),
                connection,
                queues=settings.queues.values(),
                devices=settings.devices,
                completed=completed,
                unfinished=unfinished,
            )


def events_of(connection: sqlite3.Connection) -> list[Event]:
    """All that the follower was not told yet, which is all there was since it began to follow if nobody takes its events."""
    rows = connection.execute(
        "SELECT id, at, name, job_id, queue, data FROM events "
        "WHERE id > coalesce((SELECT last_event_id FROM followers WHERE name = ?), 0) ORDER BY id",
        (FOLLOWER,),
    )
    return [to_event(row) for row in rows]


ASKED = "SELECT id, json_extract(arguments, '$.model') FROM jobs WHERE task LIKE 'ollama.%'"


def check(
    events: Sequence[Event],
    connection: sqlite3.Connection | None = None,
    *,
    queues: Iterable[QueueSettings] = (),
    devices: Iterable[DeviceSettings] = (),
    completed: Iterable[int] = (),
    unfinished: Collection[int] = (),
    retried: Mapping[int, int] | None = None,
    asked: Mapping[int, str] | None = None,
) -> None:
    """Fail with a sentence when a promise was broken.

    At-least-once execution: every job comes to its end except the `unfinished`, those that `completed` by a started attempt.
    Exactly-once finishing: a job finishes once, and once more each time that a person retried it (`retried`: {job: times}).
    Lease exclusivity: an attempt begins under a new lease while no other runs, and only its worker ends it, or a rescue.
    Limits: `queues` have their concurrency and `devices` their slots while jobs run, and their budget until the clean-up.
    The requests to one model (`asked`: {job: model}, else as the rows tell it) have its memory together.
    The rows tell the same end as the events.
    """
    limits = {queue.name: queue.concurrency for queue in queues}
    if asked is None:
        asked = {} if connection is None else dict(connection.execute(ASKED).fetchall())
    told = _Told(limits, {device.name: device for device in devices}, retried or {}, asked)
    assert [event.id for event in events] == sorted({event.id for event in events}), "events came out of order, or twice"
    for event in events:
        told.hear(event)
    told.end(completed, unfinished)
    if connection is not None:
        check_rows(connection)
        told.compare(connection)


@dataclass
class _Job:
    """What the events have told of one job so far."""

    queue: str
    state: str
    lease: int = 0
    worker: str | None = None
    starts: int = 0
    retries: int = 0
    taken_from: str | None = None  # the worker that a rescue must name next
    reserved: tuple[str, int] | None = None  # device and bytes, until they are cleaned up


class _Told:
    """What the events have told so far, compared with what may happen as each is heard."""

    def __init__(
        self,
        limits: Mapping[str, int | None],
        devices: Mapping[str, DeviceSettings],
        retried: Mapping[int, int],
        asked: Mapping[int, str],
    ) -> None:
        self.jobs: dict[int, _Job] = {}
        self._running: dict[str, set[int]] = {}
        self._reserving: dict[str, set[int]] = {}
        self._limits = limits
        self._devices = devices
        self._retried = retried
        self._asked = asked  # {request to a server: model}

    def hear(self, event: Event) -> None:
        if event.job_id is None:
            return
        if event.name == "job_enqueued":
            assert event.job_id not in self.jobs, f"job {event.job_id} was stored twice"
            self.jobs[event.job_id] = _Job(event.queue or "", event.data["state"])
            return
        assert event.job_id in self.jobs, f"job {event.job_id} did something before it was stored: {event}"
        job = self.jobs[event.job_id]
        if event.name == "lease_rescued":
            assert job.taken_from == event.data["worker"], (
                f"job {event.job_id} was rescued and not taken from its worker: {event}"
            )
            job.taken_from = None
        elif event.name == "device_released":
            self._release(event.job_id, job, event)
        elif event.name in MOVES:
            self._move(event.job_id, job, event)

    def _move(self, job_id: int, job: _Job, event: Event) -> None:
        assert event.data["before"] == job.state, f"job {job_id} was {job.state}, and went on from elsewhere: {event}"
        if job.state in FINISHED:
            job.retries += 1
            is_asked = job.state != "completed" and job.retries <= self._retried.get(job_id, 0)
            assert is_asked and event.name == "job_promoted", f"job {job_id} went on after it had {job.state}: {event}"
        if job.state == "running":
            self._end_attempt(job_id, job, event)
        job.state = event.data["state"]
        if job.state == "running":
            self._start(job_id, job, event)
        elif job.state in FINISHED:
            assert job.state != "completed" or event.data["before"] == "running", (
                f"job {job_id} completed without running: {event}"
            )

    def _start(self, job_id: int, job: _Job, event: Event) -> None:
        lease, device = event.data["lease"], event.data["device"]
        assert lease > job.lease, f"job {job_id} got lease {lease} after {job.lease}"
        job.lease, job.worker, job.starts = lease, event.data["worker"], job.starts + 1
        running = self._running.setdefault(job.queue, set())
        running.add(job_id)
        limit = self._limits.get(job.queue)
        assert limit is None or len(running) <= limit, f"queue {job.queue} runs {sorted(running)}, its concurrency is {limit}"
        assert job.reserved is None, f"job {job_id} was started before its clean-up: {event}"
        if device is not None:
            self._reserve(job_id, job, device, event.data["reserved_bytes"])

    def _reserve(self, job_id: int, job: _Job, device: str, reserved_bytes: int) -> None:
        job.reserved = (device, reserved_bytes)
        there = self._reserving.setdefault(device, set())
        there.add(job_id)
        settings = self._devices.get(device)
        if settings is None:
            return
        # A job may start while the memory of one that has ended comes back.
        running = sorted(other_id for other_id in there if self.jobs[other_id].state == "running")
        assert len(running) <= settings.slots, f"jobs {running} were on {device} at once, it has {settings.slots} slots"
        sizes: dict[object, int] = {}  # a server's model is loaded once for all its requests
        for other_id in there:
            key = self._asked.get(other_id) or other_id
            sizes[key] = max(sizes.get(key, 0), (self.jobs[other_id].reserved or ("", 0))[1])
        taken = sum(sizes.values())
        assert taken <= settings.budget_bytes, f"jobs {sorted(there)} reserve {taken} bytes of {device}'s {settings.budget_bytes}"

    def _end_attempt(self, job_id: int, job: _Job, event: Event) -> None:
        lease, worker = event.data["lease"], event.data["worker"]
        assert event.name != "attempt_started", f"job {job_id} was started while it ran: {event}"
        assert worker == job.worker, f"job {job_id} was ended by {worker}, and {job.worker} held its lease"
        if lease != job.lease:
            assert lease == job.lease + 1 and event.data["state"] != "completed", (
                f"job {job_id} was ended under lease {lease}, and had {job.lease}"
            )
            job.taken_from = worker
        job.lease = lease
        self._running[job.queue].discard(job_id)

    def _release(self, job_id: int, job: _Job, event: Event) -> None:
        assert job.state != "running", f"job {job_id} lost its device while it ran: {event}"
        found = (event.data["device"], event.data["reserved_bytes"])
        # Once its model is unloaded, at least what that was seen to hold is reserved.
        assert job.reserved is not None and job.reserved[0] == found[0] and job.reserved[1] <= found[1], (
            f"job {job_id} released {found} and had reserved {job.reserved}"
        )
        self._reserving[found[0]].discard(job_id)
        job.reserved = None

    def end(self, completed: Iterable[int], unfinished: Collection[int]) -> None:
        """Check what can only be said when nothing more comes."""
        for job_id in completed:
            job = self.jobs[job_id]
            assert job.starts >= 1, f"job {job_id} never started"
            assert job.state == "completed", f"job {job_id} should have completed, and is {job.state}"
        for job_id, job in self.jobs.items():
            assert job.taken_from is None, f"job {job_id} ended under a lease that its worker never had"
            assert (job.state in FINISHED) is (job_id not in unfinished), f"in the end job {job_id} is {job.state}"

    def compare(self, connection: sqlite3.Connection) -> None:
        """Check that the rows tell the same end."""
        rows = dict(connection.execute("SELECT id, state FROM jobs").fetchall())
        taken = {item.job_id: (item.device, item.reserved_bytes) for item in reservations(connection)}
        assert rows.keys() <= self.jobs.keys(), f"jobs {sorted(rows.keys() - self.jobs.keys())} were stored, and no event says so"
        for job_id, job in self.jobs.items():
            if job_id not in rows:
                assert job.state in FINISHED, f"job {job_id} is gone, and was {job.state}"
                continue
            assert rows[job_id] == job.state, f"job {job_id} is {rows[job_id]}, and its events end as {job.state}"
        reserved = {job_id: job.reserved for job_id, job in self.jobs.items() if job.reserved is not None}
        assert taken == reserved, f"the rows reserve {taken}, the events say {reserved}"


def check_rows(connection: sqlite3.Connection) -> None:
    """Fail when the file is damaged or the rows contradict each other, as `gpuqueue db check` finds it."""
    found = list(integrity.contradictions(connection, Path("the file")))
    assert not found, found
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
