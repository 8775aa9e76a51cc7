"""Owns the checks of a history, whoever made it: what a follower's events and the rows say must agree with every promise.

A test hands over the events of a follower that followed from before the first job, and the store; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpuqueue.domain import Event
from gpuqueue.store import Store, integrity

FINISHED = ("completed", "cancelled", "discarded")


@dataclass
class _Told:
    """What the events have told of one job so far."""

    queue: str
    running: bool = False
    finished: str | None = None
    lease: int = 0
    starts: int = 0
    finishes: list[str] = field(default_factory=list)


def check(
    events: Sequence[Event],
    store: Store | None = None,
    *,
    completed: Iterable[int] = (),
    concurrency: Mapping[str, int] | None = None,
    one_at_a_time_on: Collection[str] = (),
    retried: Collection[int] = (),
) -> None:
    """Fail with a sentence when a promise was broken.

    Always: a job starts only after it was stored and never while it runs or is finished; its lease numbers only grow; it
    finishes once (`retried` jobs may be made available again by a person); the rows tell the same end as the events.
    `completed` jobs did complete, having started at least once; `concurrency` is the most running jobs of a queue;
    on the devices `one_at_a_time_on` no two attempts overlap.
    """
    jobs: dict[int, _Told] = {}
    running: dict[str, set[int]] = {}
    on_device: dict[str, int] = {}
    assert [event.id for event in events] == sorted({event.id for event in events}), "events came out of order, or twice"
    for event in events:
        if event.name == "job_enqueued":
            assert event.job_id is not None
            assert event.job_id not in jobs, f"job {event.job_id} was stored twice"
            jobs[event.job_id] = _Told(event.queue or "")
        if event.job_id is None or event.name not in ("attempt_started", "attempt_finished", "job_finished", "job_promoted"):
            continue
        told = jobs.get(event.job_id)
        assert told is not None, f"job {event.job_id} did something before it was stored: {event}"
        if event.name == "attempt_started":
            lease, device = event.data["lease"], event.data["device"]
            assert not told.running, f"job {event.job_id} was started while it ran: {event}"
            assert told.finished is None, f"job {event.job_id} was started after it had {told.finished}: {event}"
            assert lease > told.lease, f"job {event.job_id} got lease {lease} after {told.lease}"
            told.running, told.lease, told.starts = True, lease, told.starts + 1
            running.setdefault(told.queue, set()).add(event.job_id)
            limit = (concurrency or {}).get(told.queue)
            assert limit is None or len(running[told.queue]) <= limit, f"{told.queue} runs {running[told.queue]}"
            if device in one_at_a_time_on:
                assert device not in on_device, f"jobs {on_device[device]} and {event.job_id} were on {device} at once"
                on_device[device] = event.job_id
            continue
        assert told.finished is None or event.job_id in retried, (
            f"job {event.job_id} went on after it had {told.finished}: {event}"
        )
        if event.data["before"] == "running":
            assert told.running, f"job {event.job_id} ended an attempt that had not begun: {event}"
            assert event.data["lease"] >= told.lease, f"job {event.job_id} ended with an old lease: {event}"
            told.running, told.lease = False, event.data["lease"]
            running[told.queue].discard(event.job_id)
            for device in [device for device, job_id in on_device.items() if job_id == event.job_id]:
                del on_device[device]
        told.finished = event.data["state"] if event.name == "job_finished" else None
        if event.name == "job_finished":
            told.finishes.append(event.data["state"])
    for job_id in completed:
        told = jobs[job_id]
        assert told.starts >= 1, f"job {job_id} never started"
        assert told.finishes[-1:] == ["completed"], f"job {job_id} finished {told.finishes}"
    for job_id, told in jobs.items():
        if job_id not in retried:
            assert len(told.finishes) <= 1, f"job {job_id} finished more than once: {told.finishes}"
    if store is not None:
        _compare_with_rows(store, jobs)


def check_rows(store: Store) -> None:
    """Fail when the file is damaged or the rows contradict each other."""
    assert integrity.check_file(store.path) == []


def _compare_with_rows(store: Store, jobs: Mapping[int, _Told]) -> None:
    check_rows(store)
    with store.snapshot() as connection:
        rows = dict(connection.execute("SELECT id, state FROM jobs").fetchall())
    for job_id, told in jobs.items():
        if job_id in rows:
            state = rows[job_id]
            assert (state == "running") == told.running, f"job {job_id} is {state}, but its events say otherwise"
            assert (state if state in FINISHED else None) == told.finished, f"job {job_id} is {state}, told as {told.finished}"
