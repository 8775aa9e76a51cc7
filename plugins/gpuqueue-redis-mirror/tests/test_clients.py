"""What BullMQ's own clients read of the mirror is what the queue says, also with the rights of a reader only."""

from __future__ import annotations

import json

import pytest
import redis
from gpuqueue_redis_mirror.commands import reader_line
from gpuqueue_redis_mirror.layout import milliseconds
from mirror_scene.readers import READERS
from mirror_scene.scene import heard, level

from gpuqueue.testing.waiting import DEADLINE_S, wait_until

SHOWN_TO_NOBODY = {"bull-board": {"priority", "attemptsStarted"}}


@pytest.fixture
def scene(make, start, redis_server):
    """A queue in which every state has its jobs, mirrored; the worker runs one of them for ever."""
    gq = make()
    worker = start(gq)
    level(gq, redis_server)
    done = [gq.work.enqueue(n=n) for n in (1, 2)]
    failed = gq.work.enqueue(n=3, fails=True)
    running = gq.wait.enqueue()
    wait_until(lambda: running.refresh().state == "running")
    waiting = [gq.wait.using(priority=priority, tags=["x"]).enqueue() for priority in (0, -1, 5, -2)]
    later = [gq.work.using(delay=f"{hours}h").enqueue(n=3) for hours in (2, 1)]
    wait_until(lambda: failed.refresh().state == "discarded" and all(job.refresh().state == "completed" for job in done))
    gq.pause("slow", reason="looked at")
    level(gq, redis_server)
    gq.done, gq.failed, gq.running, gq.waiting, gq.later, gq.worker = done, failed, running, waiting, later, worker
    return gq


@pytest.fixture(params=["an administrator", "a reader"])
def url(request, redis_server):
    if request.param == "an administrator":
        return redis_server.url
    with redis_server.client() as client:
        client.execute_command(*reader_line("reader", "bull", "secret").split())
    return redis_server.url.replace("redis://", "redis://reader:secret@")


@pytest.fixture(params=READERS)
def reader(request, make_reader, url):
    return make_reader(request.param, url)


def ids(jobs):
    return [str(job.id) for job in jobs]


def test_every_client_reads_the_queue(scene, reader):
    first, low, high, lowest = scene.waiting
    slow = {"waiting": ids([high, first]), "prioritized": ids([low, lowest]), "active": ids([scene.running])}
    by_finish = sorted(scene.done, key=lambda job: job.refresh().record.finished_at)
    mail = {"delayed": ids(scene.later[::-1]), "completed": ids(by_finish[::-1]), "failed": ids([scene.failed])}
    for queue, states in (("slow", slow), ("mail", mail)):
        counts = {state: count for state, count in reader.counts(queue).items() if count}
        assert counts == {state: len(found) for state, found in states.items()}
        for state, expected in states.items():
            turned = reader.name == "bull-board" and state not in ("completed", "failed")
            assert reader.ids(queue, state) == (expected[::-1] if turned else expected), state
    assert [reader.is_paused(queue) for queue in ("slow", "mail", "empty")] == [True, False, False]
    for job in (*scene.done, scene.failed, scene.running, *scene.waiting, *scene.later):
        record = job.refresh().record
        found = reader.job(record.queue, str(job.id))
        expected = fields_of(record, scene)
        hidden = SHOWN_TO_NOBODY.get(reader.name, set())
        assert {name: found.get(name) for name in expected if name not in hidden} == {
            name: value for name, value in expected.items() if name not in hidden
        }
    assert reader.logs("mail", str(scene.done[0].id)) == ["at 1"]
    workers = reader.workers("mail")
    assert workers == [scene.worker.id]


FINISHED_MINUTES_AGO = {"completed": (2, 2, 3, 6, 6, 6), "failed": (4, 7)}


@pytest.mark.parametrize("kind", READERS)
def test_metrics_tell_how_many_jobs_finished_in_each_minute(make, start, redis_server, make_reader, kind):
    gq = make()
    worker = start(gq)
    jobs = {
        "completed": [gq.work.enqueue(n=n) for n in range(len(FINISHED_MINUTES_AGO["completed"]))],
        "failed": [gq.work.enqueue(n=n, fails=True) for n in range(len(FINISHED_MINUTES_AGO["failed"]))],
    }
    wait_until(lambda: all(job.refresh().finished_at is not None for found in jobs.values() for job in found), "all are done")
    worker.stop()
    now_minute = milliseconds(gq.now()) // 60_000
    with gq.store.engine.lent() as connection:
        for name, ago in FINISHED_MINUTES_AGO.items():
            for job, minutes in zip(jobs[name], ago, strict=True):
                finished_us = ((now_minute - minutes) * 60 + 30) * 1_000_000
                connection.execute("UPDATE jobs SET finished_at = ? WHERE id = ?", (finished_us, job.id))
    redis_server.flush()
    start(gq)
    level(gq, redis_server)
    reader = make_reader(kind, redis_server.url)
    newest_ms = {"completed": (now_minute - 2) * 60_000, "failed": (now_minute - 4) * 60_000}
    expected = {
        "completed": {"count": 6, "prevTS": newest_ms["completed"], "prevCount": 4, "data": [1, 0, 0, 3]},
        "failed": {"count": 2, "prevTS": newest_ms["failed"], "prevCount": 1, "data": [0, 0, 1]},
    }
    for name, counts in expected.items():
        found = reader.metrics("mail", name)
        if kind == "python":  # which shows none
            assert found is None
        else:
            assert {key: [int(n) for n in value] if key == "data" else int(value) for key, value in found.items()} == counts


def fields_of(record, gq):
    fields = {
        "name": record.task,
        "data": dict(record.arguments),
        "timestamp": milliseconds(record.enqueued_at),
        "attemptsStarted": record.lease,
        "attemptsMade": record.attempt - (record.state == "running"),
        "priority": -record.priority if record.priority < 0 else 0,
    }
    if record.started_at is not None:
        fields["processedOn"] = milliseconds(record.started_at)
    if record.finished_at is not None:
        fields["finishedOn"] = milliseconds(record.finished_at)
        fields["progress"] = {"percent": 50, "note": "half"}
    if record.state == "completed":
        fields["returnvalue"] = gq.job(record.id).result(timeout_s=DEADLINE_S)
    if record.error is not None:
        fields["failedReason"] = record.error.message
    return fields


@pytest.mark.parametrize("kind", ["python", "node-5", "node-6"])
def test_listeners_hear_a_jobs_life(make, start, redis_server, client, make_reader, kind):
    gq = make()
    start(gq)
    level(gq, redis_server)
    done, failed = gq.work.enqueue(n=1), gq.work.enqueue(n=2, fails=True)
    done.result(timeout_s=DEADLINE_S)
    wait_until(lambda: failed.refresh().state == "discarded")
    heard(client, "mail", "completed")
    heard(client, "mail", "failed")
    events = make_reader(kind, redis_server.url).events("mail")
    told = [event["event"] for event in events if event.get("jobId") == str(done.id)]
    assert told == ["added", "waiting", "active", "progress", "completed"]
    (completed,) = (event for event in events if event["event"] == "completed")
    value = completed["returnvalue"]
    assert (json.loads(value) if isinstance(value, str) else value) == {"n": 1}
    (lost,) = (event for event in events if event["event"] == "failed")
    assert (lost["jobId"], lost["failedReason"]) == (str(failed.id), "not this one")


def contents(server):
    """Every key as the server would save it."""
    with redis.Redis(port=server.port) as client:
        return {key: client.dump(key) for key in client.keys("*")}


WRITES = [
    ("SET", "bull:mail:x", "1"),
    ("HSET", "bull:mail:meta", "paused", "1"),
    ("LPUSH", "bull:mail:wait", "9"),
    ("ZADD", "bull:mail:failed", "1", "9"),
    ("XADD", "bull:mail:events", "*", "event", "paused"),
    ("DEL", "bull:mail:meta"),
    ("RENAME", "bull:mail:meta", "bull:mail:x"),
    ("EXPIRE", "bull:mail:meta", "1"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("EVAL", "return redis.call('DEL', KEYS[1])", "1", "bull:mail:meta"),
    ("EVAL", "return redis.call('LPUSH', KEYS[1], 'x')", "1", "bull:mail:wait"),
    ("GET", "gpuqueue-mirror:bull"),
    ("SHUTDOWN",),
    ("ACL", "SETUSER", "reader", "+@all"),
]


def test_a_reader_can_write_nothing(scene, redis_server, client):
    client.execute_command(*reader_line("reader", "bull", "secret").split())
    scene.worker.stop(grace_s=0)
    before = contents(redis_server)
    with redis.Redis(port=redis_server.port, username="reader", password="secret", decode_responses=True) as reading:
        assert reading.hget("bull:mail:meta", "version")
        for command in WRITES:
            with pytest.raises(redis.ResponseError, match=r"(?i)noperm|permission"):
                reading.execute_command(*command)
    assert contents(redis_server) == before
