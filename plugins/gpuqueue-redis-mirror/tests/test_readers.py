"""A queue that is written by hand, as the mirror's reference has it, reads the same in every client."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
import redis

from gpuqueue.testing.waiting import wait_until

from .listener import NodeQueueEvents
from .readers import BullBoard, Reader, ReadFailed
from .servers import Server

QUEUE = "ai-batch"
BASE = f"bull:{QUEUE}:"
NOW_MS = 1_790_000_000_000
COMPLETED = {
    "name": "ollama.generate",
    "data": {"model": "gemma4:e4b", "prompt": "später"},
    "opts": {"attempts": 3, "priority": 0},
    "timestamp": NOW_MS,
    "delay": 0,
    "priority": 0,
    "processedOn": NOW_MS + 1000,
    "finishedOn": NOW_MS + 2000,
    "attemptsStarted": 2,
    "attemptsMade": 1,
    "stalledCounter": 1,
    "progress": {"tokens": 7},
    "returnvalue": {"text": "ok"},
    "processedBy": "gpu 1",
    "deduplicationId": "once",
}
FAILED = {
    "name": "render",
    "data": [1, 2],
    "opts": {},
    "timestamp": NOW_MS,
    "delay": 0,
    "priority": 0,
    "processedOn": NOW_MS + 1000,
    "finishedOn": NOW_MS + 3000,
    "attemptsStarted": 1,
    "attemptsMade": 1,
    "failedReason": 'not "there"',
    "stacktrace": ["first", "second"],
}
STORED_AS = {
    **{"attemptsStarted": "ats", "attemptsMade": "atm", "stalledCounter": "stc", "processedBy": "pb"},
    **{"deduplicationId": "deid"},
}
IN_JSON = ("data", "opts", "progress", "returnvalue", "stacktrace")
IDS = {
    "waiting": ["1", "2", "3"],
    "active": ["4"],
    "prioritized": ["5", "6"],
    "delayed": ["7", "8"],
    "completed": ["10", "9"],
    "failed": ["11"],
}


def job_hash(fields: dict[str, Any]) -> dict[str, Any]:
    return {STORED_AS.get(name, name): json.dumps(value) if name in IN_JSON else value for name, value in fields.items()}


@pytest.fixture
def written(redis_server: Server) -> Server:
    """The server with one queue in which each state has its jobs."""
    plain = {"name": "task", "data": {}, "opts": {}, "timestamp": NOW_MS, "delay": 0, "priority": 0}
    with redis_server.client() as client, client.pipeline() as pipe:
        pipe.hset(BASE + "meta", mapping={"opts.maxLenEvents": 10000, "version": "bullmq:6.7.0"})
        for job_id in range(1, 9):
            pipe.hset(f"{BASE}{job_id}", mapping=job_hash(plain))
        for job_id in ("9", "10"):
            pipe.hset(BASE + job_id, mapping=job_hash(COMPLETED))
        pipe.hset(BASE + "11", mapping=job_hash(FAILED))
        pipe.lpush(BASE + "wait", "1", "2", "3")
        pipe.lpush(BASE + "active", "4")
        pipe.zadd(BASE + "prioritized", {"6": 9 * 2**32 + 1, "5": 2 * 2**32 + 2})
        pipe.zadd(BASE + "delayed", {"8": (NOW_MS + 500) * 4096 + 1, "7": (NOW_MS + 500) * 4096})
        pipe.zadd(BASE + "completed", {"9": NOW_MS + 2000, "10": NOW_MS + 2001})
        pipe.zadd(BASE + "failed", {"11": NOW_MS + 3000})
        pipe.rpush(BASE + "9:logs", "loaded the model", "done: ü")
        pipe.hset(BASE + "metrics:completed", mapping={"count": 12, "prevTS": NOW_MS, "prevCount": 12})
        pipe.rpush(BASE + "metrics:completed:data", 3, 0, 9)
        pipe.execute()
    return redis_server


EVENTS: list[dict[str, Any]] = [
    {"event": "added", "jobId": "9", "name": "ollama.generate"},
    {"event": "waiting", "jobId": "9"},
    {"event": "active", "jobId": "9", "prev": "waiting"},
    {"event": "progress", "jobId": "9", "data": {"tokens": 7}},
    {"event": "completed", "jobId": "9", "returnvalue": {"text": "ok"}, "prev": "active"},
    {"event": "failed", "jobId": "11", "failedReason": 'not "there"', "prev": "active"},
    {"event": "retries-exhausted", "jobId": "11", "attemptsMade": "1"},
    {"event": "removed", "jobId": "12", "prev": "completed"},
    {"event": "paused"},
    {"event": "resumed"},
    {"event": "drained"},
]


def add_event(server: Server, event_id: str, event: dict[str, Any]) -> None:
    fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in event.items()}
    with server.client() as client:
        client.xadd(BASE + "events", fields, id=event_id)


def test_the_counts_are_those_of_the_states(written: Server, reader: Reader) -> None:
    counts = {state: count for state, count in reader.counts(QUEUE).items() if count}
    assert counts == {state: len(ids) for state, ids in IDS.items()}


@pytest.mark.parametrize("state", IDS)
def test_the_next_to_run_comes_first_and_of_finished_jobs_the_newest(written: Server, reader: Reader, state: str) -> None:
    newest_first = reader.name == "bull-board" and state not in ("completed", "failed")
    assert reader.ids(QUEUE, state) == (IDS[state][::-1] if newest_first else IDS[state])


# What a client does not show of a job.
UNKNOWN = {"bullmq for Python": {"processedBy", "deduplicationId"}, "bull-board": {"priority", "attemptsStarted"}}


@pytest.mark.parametrize(("job_id", "state", "fields"), [("9", "completed", COMPLETED), ("11", "failed", FAILED)])
def test_a_job_has_every_field_that_was_written(
    written: Server, reader: Reader, job_id: str, state: str, fields: dict[str, Any]
) -> None:
    job = reader.job(QUEUE, job_id)
    assert job is not None
    assert (job["id"], job["state"]) == (job_id, state)
    assert fields["opts"].items() <= job.pop("opts").items()
    shown = {name: value for name, value in fields.items() if name != "opts"}
    assert {name: job[name] for name in shown if name in job} == {name: shown[name] for name in shown if name in job}
    assert {name for name in shown if name not in job} <= UNKNOWN.get(reader.name, set())


def test_a_job_that_is_not_there_is_none(written: Server, reader: Reader) -> None:
    assert reader.job(QUEUE, "99") is None


def test_a_queue_is_paused_as_long_as_its_meta_has_the_field(written: Server, reader: Reader) -> None:
    assert not reader.is_paused(QUEUE)
    with written.client() as client:
        client.hset(BASE + "meta", "paused", 1)
        assert reader.is_paused(QUEUE)
        client.hdel(BASE + "meta", "paused")
    assert not reader.is_paused(QUEUE)


def test_the_lines_of_a_log_come_in_their_order(written: Server, reader: Reader) -> None:
    assert reader.logs(QUEUE, "9") == ["loaded the model", "done: ü"]
    assert reader.logs(QUEUE, "10") == []


def test_metrics_are_the_counts_of_past_minutes(written: Server, reader: Reader) -> None:
    expected = {"count": 12, "prevTS": NOW_MS, "prevCount": 12, "data": [3, 0, 9]}
    assert reader.metrics(QUEUE, "completed") == (None if reader.name == "bullmq for Python" else expected)


def test_events_are_heard_as_they_were_written(redis_server: Server, reader: Reader) -> None:
    for n, event in enumerate(EVENTS, start=1):
        add_event(redis_server, f"{NOW_MS}-{n}", event)
    heard = reader.events(QUEUE)
    if reader.name == "bull-board":
        assert heard is None
        return
    assert heard == [{"id": f"{NOW_MS}-{n}", **event} for n, event in enumerate(EVENTS, start=1)]
    assert reader.events(QUEUE, f"{NOW_MS}-{len(EVENTS) - 1}") == heard[-1:]
    assert reader.events(QUEUE, f"{NOW_MS}-{len(EVENTS)}") == []


def test_a_paused_queue_keeps_its_waiting_jobs(written: Server, reader: Reader) -> None:
    with written.client() as client:
        client.hset(BASE + "meta", "paused", 1)
    assert reader.counts(QUEUE)["waiting"] == 3
    assert sorted(reader.ids(QUEUE, "waiting")) == IDS["waiting"]


def test_workers_are_seen_by_the_names_of_their_connections(redis_server: Server, reader: Reader) -> None:
    encoded = base64.b64encode(QUEUE.encode()).decode()
    shown_to = QUEUE if reader.name == "bullmq for Python" else encoded
    assert reader.workers(QUEUE) == []
    names = [f"bull:{shown_to}:w:gpu-1", f"bull:{shown_to}:w:cpu-1", f"bull:{shown_to}x:w:other"]
    clients = [redis_server.client(client_name=name) for name in names]
    for client in clients:
        client.ping()
    assert reader.workers(QUEUE) == ["cpu-1", "gpu-1"]
    for client in clients:
        client.close()


def test_an_empty_server_reads_as_an_empty_queue_and_stays_empty(redis_server: Server, every_reader: list[Reader]) -> None:
    for reader in every_reader:
        assert set(reader.counts(QUEUE).values()) == {0}
        assert reader.ids(QUEUE, "waiting") == []
        assert not reader.is_paused(QUEUE)
        assert reader.logs(QUEUE, "1") == []
        assert reader.events(QUEUE) in ([], None)
    with redis_server.client() as client:
        assert client.keys("*") == []


def test_a_job_whose_data_is_not_json_spoils_the_whole_page(written: Server, reader: Reader) -> None:
    with written.client() as client:
        client.hset(BASE + "2", "data", "{not json")
    with pytest.raises(ReadFailed):
        reader.ids(QUEUE, "waiting")
    assert reader.counts(QUEUE)["waiting"] == 3


def test_a_server_that_is_away_is_a_failed_read_and_the_reader_reads_again_when_it_is_back(
    written: Server, reader: Reader
) -> None:
    assert reader.counts(QUEUE)["waiting"] == 3
    written.stop()
    with pytest.raises(ReadFailed):
        reader.counts(QUEUE)
    written.start()
    assert wait_until(lambda: reads(reader)) == {"waiting": 0}


def reads(reader: Reader) -> dict[str, int] | None:
    try:
        return {"waiting": reader.counts(QUEUE)["waiting"]}
    except ReadFailed:
        return None


READ_ONLY = (
    *("-@all", "+@read", "+@transaction", "+@connection", "-client|kill", "-client|pause", "-client|unpause"),
    *("-client|unblock", "-client|no-evict", "-client|reply", "+eval", "+evalsha", "+script|load", "+script|exists", "+info"),
)


@pytest.mark.parametrize("kind", ["python", "node-5", "node-6", "bull-board"])
def test_a_user_who_may_only_read_is_enough(written: Server, make_reader: Callable[[str, str], Reader], kind: str) -> None:
    with written.client() as client:
        if int(client.info("server")["redis_version"].split(".")[0]) < 7:
            pytest.skip("this server's ACL cannot take single subcommands away: that came with Redis 7")
        client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~bull:*", *READ_ONLY)
        add_event(written, f"{NOW_MS}-1", EVENTS[0])
    url = written.url.replace("redis://", "redis://reader:secret@")
    reader = make_reader(kind, url)
    assert reader.ids(QUEUE, "completed") == IDS["completed"]
    assert reader.counts(QUEUE)["failed"] == 1
    assert reader.job(QUEUE, "9")
    assert reader.logs(QUEUE, "9")
    assert reader.workers(QUEUE) == []
    assert reader.metrics(QUEUE, "failed") in (None, {"count": 0, "prevTS": 0, "prevCount": 0, "data": []})
    assert reader.events(QUEUE) in (None, [{"id": f"{NOW_MS}-1", **EVENTS[0]}])
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.hdel(BASE + "meta", "version")


@pytest.mark.parametrize("package", ["bullmq-5", "bullmq"])
def test_a_listener_hears_each_event_and_outlives_a_restart(
    redis_server: Server, listen: Callable[..., NodeQueueEvents], package: str
) -> None:
    add_event(redis_server, f"{NOW_MS}-1", EVENTS[0])
    listener = listen(QUEUE, package=package)
    assert listener.wait_until_heard("added", jobId="9")["id"] == f"{NOW_MS}-1"
    redis_server.restart(keep_data=True)
    add_event(redis_server, f"{NOW_MS}-2", EVENTS[4])
    assert listener.wait_until_heard("completed")["returnvalue"] == {"text": "ok"}
    assert [heard["event"] for heard in listener.heard] == ["added", "completed"]
    assert listener.died_of is None


@pytest.mark.parametrize("package", ["bullmq-5", "bullmq"])
def test_a_completed_event_without_a_return_value_kills_a_listener(
    redis_server: Server, listen: Callable[..., NodeQueueEvents], package: str
) -> None:
    listener = listen(QUEUE, package=package)
    add_event(redis_server, f"{NOW_MS}-1", {"event": "completed", "jobId": "9", "prev": "active"})
    assert "JSON" in listener.wait_until_dead()
    assert listener.heard == []


def test_the_dashboard_shows_finished_jobs_page_by_page(written: Server, make_reader: Callable[[str, str], Reader]) -> None:
    with written.client() as client:
        for job_id in range(20, 145):
            client.hset(f"{BASE}{job_id}", mapping=job_hash(COMPLETED))
            client.zadd(BASE + "completed", {str(job_id): NOW_MS + 2000 + job_id})
    board = make_reader("bull-board", written.url)
    newest_first = [*(str(job_id) for job_id in range(144, 19, -1)), "10", "9"]
    assert isinstance(board, BullBoard)
    assert [job["id"] for job in board.page(QUEUE, "completed", 2, per_page=25)] == newest_first[25:50]
    assert board.ids(QUEUE, "completed") == newest_first


def test_a_delayed_event_tells_when_its_job_is_due(redis_server: Server, reader: Reader) -> None:
    if reader.name == "bull-board":
        pytest.skip("the dashboard listens to no events")
    add_event(redis_server, f"{NOW_MS}-1", {"event": "delayed", "jobId": "7", "delay": NOW_MS + 500})
    (heard,) = reader.events(QUEUE) or []
    # Node's clients make a number of it, Python's leaves it as it is.
    assert {**heard, "delay": int(heard["delay"])} == {
        "id": f"{NOW_MS}-1",
        "event": "delayed",
        "jobId": "7",
        "delay": NOW_MS + 500,
    }


def test_an_id_without_its_hash_is_counted_and_not_listed(written: Server, reader: Reader) -> None:
    with written.client() as client:
        client.delete(BASE + "10")
    assert reader.counts(QUEUE)["completed"] == 2
    assert reader.ids(QUEUE, "completed") == ["9"]
