"""The checker of histories: what is well passes, and each broken promise is said."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker
from gpuqueue.domain.job import Event
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.domain.units import from_us
from gpuqueue.testing.waiting import DEADLINE_S
from tests.history import History, check

GB = 10**9
QUEUES = [QueueSettings("mail"), QueueSettings("narrow", concurrency=1), QueueSettings("ai", gpu=True)]
DEVICES = [DeviceSettings("gpu0", budget_bytes=5 * GB, slots=2), DeviceSettings("gpu1", budget_bytes=5 * GB)]


class Story:
    """Tells events as the triggers write them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.jobs: dict[int, dict[str, Any]] = {}

    def tell(self, name: str, job_id: int, **data: Any) -> Story:
        at = from_us(1_700_000_000_000_000 + len(self.events))
        self.events.append(Event(1 + len(self.events), at, name, job_id, self.jobs[job_id]["queue"], data))
        return self

    def move(self, name: str, job_id: int, state: str, **changes: Any) -> Story:
        job = self.jobs[job_id]
        before = changes.pop("before", job["state"])
        job.update(changes, state=state)
        data = {key: job[key] for key in ("attempt", "lease", "worker", "device", "reserved_bytes")}
        return self.tell(name, job_id, **data, state=state, before=before)

    def stored(self, job_id: int, queue: str = "mail", state: str = "available") -> Story:
        nothing = {"attempt": 0, "lease": 0, "worker": None, "device": None, "reserved_bytes": 0}
        self.jobs[job_id] = {"queue": queue, "state": state, **nothing}
        return self.tell("job_enqueued", job_id, state=state, task="t")

    def started(self, job_id: int, device: str | None = None, gb: int = 0, worker: str = "w", **changes: Any) -> Story:
        job = self.jobs[job_id]
        given = {"lease": job["lease"] + 1, "attempt": job["attempt"] + 1, "worker": worker, **changes}
        return self.move("attempt_started", job_id, "running", device=device, reserved_bytes=gb * GB, **given)

    def completed(self, job_id: int, **changes: Any) -> Story:
        return self.move("job_finished", job_id, "completed", **changes)

    def postponed(self, job_id: int, **changes: Any) -> Story:
        return self.move("attempt_finished", job_id, "retryable", **changes)

    def preempted(self, job_id: int) -> Story:
        return self.move("attempt_finished", job_id, "available", attempt=self.jobs[job_id]["attempt"] - 1)

    def promoted(self, job_id: int, **changes: Any) -> Story:
        return self.move("job_promoted", job_id, "available", **changes)

    def taken(self, job_id: int) -> Story:
        lease = self.jobs[job_id]["lease"] + 1
        return self.move("attempt_finished", job_id, "available", lease=lease)

    def rescued(self, job_id: int, worker: str = "w") -> Story:
        return self.taken(job_id).tell("lease_rescued", job_id, worker=worker)

    def released(self, job_id: int) -> Story:
        job = self.jobs[job_id]
        self.tell("device_released", job_id, device=job["device"], reserved_bytes=job["reserved_bytes"], lease=job["lease"])
        job.update(device=None, reserved_bytes=0)
        return self


def told() -> Story:
    return Story()


def two(queue: str = "mail") -> Story:
    return told().stored(1, queue).stored(2, queue)


GOOD = {
    "a job completes": (told().stored(1).started(1).completed(1), {"completed": [1]}),
    "a job waits": (told().stored(1, state="scheduled").promoted(1), {"unfinished": [1]}),
    "a job is retried by its rules": (
        told().stored(1).started(1).postponed(1).promoted(1).started(1).completed(1), {"completed": [1]},
    ),
    "a job is cancelled before it began": (told().stored(1).move("job_finished", 1, "cancelled"), {}),
    "a person retries": (
        told().stored(1).move("job_finished", 1, "discarded").promoted(1).started(1).completed(1), {"retried": {1: 1}},
    ),
    "a dead worker's job runs elsewhere": (told().stored(1).started(1).rescued(1).started(1, worker="v").completed(1), {}),
    "a job makes room and runs again in its place": (
        two("ai").started(1, "gpu1", 3).preempted(1).released(1).started(2, "gpu1", 3).completed(2).released(2)
        .started(1, "gpu1", 3).completed(1).released(1), {"completed": [1, 2]},
    ),
    "one after the other in a narrow queue": (two("narrow").started(1).completed(1).started(2).completed(2), {}),
    "two share a device": (
        two("ai").started(1, "gpu0", 3).started(2, "gpu0", 2).completed(1).released(1).completed(2).released(2), {},
    ),
    "a device is taken after the clean-up": (
        two("ai").started(1, "gpu1", 3).completed(1).released(1).started(2, "gpu1", 3).completed(2).released(2), {},
    ),
}  # fmt: skip

BROKEN = {
    # at-least-once execution
    "a job is forgotten": (told().stored(1), {}, "in the end job 1 is available"),
    "a job runs for ever": (told().stored(1).started(1), {}, "in the end job 1 is running"),
    "a job ends otherwise": (
        told().stored(1).move("job_finished", 1, "discarded"), {"completed": [1]}, "job 1 never started",
    ),
    "a job fails that should complete": (
        told().stored(1).started(1).move("job_finished", 1, "discarded"), {"completed": [1]}, "job 1 should have completed",
    ),
    "a job completes without an attempt": (told().stored(1).completed(1), {}, "job 1 completed without running"),
    "a transition is missing": (
        told().stored(1).started(1).promoted(1, before="retryable"), {}, "job 1 was running, and went on from elsewhere",
    ),
    "a job ends that should wait": (told().stored(1).started(1).completed(1), {"unfinished": [1]}, "job 1 is completed"),
    # exactly-once finishing
    "a job completes twice": (told().stored(1).started(1).completed(1).completed(1), {}, "job 1 went on after it had completed"),
    "a job completes and is discarded": (
        told().stored(1).started(1).completed(1).move("job_finished", 1, "discarded"), {}, "went on after it had completed",
    ),
    "a job starts after it completed": (told().stored(1).started(1).completed(1).started(1), {}, "after it had completed"),
    "a completed job is retried": (
        told().stored(1).started(1).completed(1).promoted(1), {"retried": {1: 1}}, "job 1 went on after it had completed",
    ),
    "a job is retried unasked": (
        told().stored(1).move("job_finished", 1, "discarded").promoted(1), {}, "job 1 went on after it had discarded",
    ),
    "a job is stored twice": (told().stored(1).stored(1), {}, "job 1 was stored twice"),
    # lease exclusivity
    "a job is started while it runs": (told().stored(1).started(1).started(1), {}, "job 1 was started while it ran"),
    "a lease is given again": (
        told().stored(1).started(1).postponed(1).promoted(1).started(1, lease=1), {}, "job 1 got lease 1 after 1",
    ),
    "another worker ends an attempt": (told().stored(1).started(1).completed(1, worker="v"), {}, "w held its lease"),
    "a late attempt ends the next one's job": (
        told().stored(1).started(1).rescued(1).started(1, worker="v").completed(1, lease=1), {}, "under lease 1, and had 3",
    ),
    "a lease is lost and nobody rescued": (
        told().stored(1).started(1).taken(1), {"unfinished": [1]}, "job 1 ended under a lease that its worker never had",
    ),
    "a rescue names another worker": (told().stored(1).started(1).rescued(1, worker="v"), {}, "was rescued and not taken"),
    # limits
    "a narrow queue runs two": (two("narrow").started(1).started(2), {}, "queue narrow runs [1, 2], its concurrency is 1"),
    "a device runs more than it has slots": (two("ai").started(1, "gpu1", 1).started(2, "gpu1", 1), {}, "it has 1 slots"),
    "memory is taken before it is back": (
        two("ai").started(1, "gpu1", 3).completed(1).started(2, "gpu1", 3), {}, "jobs [1, 2] reserve 6000000000 bytes of gpu1's",
    ),
    "a device has less than is reserved": (
        two("ai").started(1, "gpu0", 3).started(2, "gpu0", 3), {}, "reserve 6000000000 bytes of gpu0's 5000000000",
    ),
    "memory that comes back is not counted": (
        two("ai").started(1, "gpu0", 3).completed(1).started(2, "gpu0", 3), {}, "reserve 6000000000 bytes",
    ),
    "a job starts before its own clean-up": (
        told().stored(1, "ai").started(1, "gpu0", 1).postponed(1).promoted(1).started(1, "gpu1", 1), {}, "before its clean-up",
    ),
    "a device is given back under a running job": (
        told().stored(1, "ai").started(1, "gpu0", 1).released(1), {}, "lost its device while it ran",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    story, expected = GOOD[name]
    check(story.events, queues=QUEUES, devices=DEVICES, **expected)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_said(name: str) -> None:
    story, expected, said = BROKEN[name]
    with pytest.raises(AssertionError) as caught:
        check(story.events, queues=QUEUES, devices=DEVICES, **expected)
    assert said in str(caught.value)


def test_events_come_in_order_and_once() -> None:
    events = told().stored(1).started(1).completed(1).events
    for wrong in ([*events, events[-1]], [events[1], events[0], events[2]]):
        with pytest.raises(AssertionError, match="out of order, or twice"):
            check(wrong)


# --- what the rows say ---

ROWS = {
    "a finish was not told": (["DELETE FROM events WHERE name = 'job_finished'"], "in the end job 1 is running"),
    "a row says otherwise": (
        ["UPDATE jobs SET state = 'discarded'", "UPDATE counters SET state = 'discarded'"],
        "job 1 is discarded, and its events end as completed",
    ),
    "a job was stored and not told of": (
        ["INSERT INTO jobs (id, queue, task, state, enqueued_at, scheduled_at, arguments) "
         "VALUES (7, 'default', 't', 'available', 0, 0, '{}')"],
        "jobs [7] were stored, and no event says so",
    ),
    "a reservation was not told of": (["UPDATE jobs SET device = 'gpu0'"], "the rows reserve {1: ('gpu0', 0)}"),
    "a counter is wrong": (["UPDATE counters SET count = 2"], "2 completed jobs of default are counted, but 1 are stored"),
    "something belongs to no job": (["INSERT INTO payloads VALUES (9, 'result', '1')"], "check='payloads'"),
    "a job has lost its arguments": (["UPDATE jobs SET arguments = NULL"], "the arguments are lost"),
}  # fmt: skip


@pytest.fixture
def history(gq: GPUQueue, start_worker: Callable[..., Worker]) -> History:
    """The history of one job that completed; what is written afterwards is not told."""
    made = History(gq)
    gq.task(name="work")(lambda: None)
    worker = start_worker(gq)
    gq.enqueue("work").result(timeout_s=DEADLINE_S)
    worker.stop()
    made.check(completed=[1])
    with sqlite3.connect(gq.database) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
    connection.close()
    return made


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_disagree_with_the_events_or_each_other_are_said(name: str, history: History, gq: GPUQueue) -> None:
    statements, said = ROWS[name]
    with sqlite3.connect(gq.database) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()
    with pytest.raises(AssertionError) as caught:
        history.check()
    assert said in str(caught.value)


def test_a_job_that_was_pruned_had_finished(history: History, gq: GPUQueue) -> None:
    with sqlite3.connect(gq.database) as connection:
        connection.execute("DELETE FROM jobs")
        connection.execute("DELETE FROM counters")
    history.check(completed=[1])
    with sqlite3.connect(gq.database) as connection:
        connection.execute("DELETE FROM events WHERE name = 'job_finished'")
    connection.close()
    with pytest.raises(AssertionError, match="job 1 is gone, and was running"):
        history.check(unfinished=[1])
