"""The mirror follows the queue, whatever becomes of the server or of what stands there."""

from __future__ import annotations

import threading

import pytest
from gpuqueue_redis_mirror import Mirror, service
from mirror_scene.scene import QUEUES, heard, level

from gpuqueue import ConfigurationError
from gpuqueue.testing.waiting import DEADLINE_S, wait_until


def test_it_shows_every_state(make, start, redis_server, client):
    gq = make()
    before = gq.work.enqueue(n=0)
    start(gq)
    done, failed = gq.work.enqueue(n=1), gq.work.enqueue(n=2, fails=True)
    running = gq.wait.enqueue()
    wait_until(lambda: running.refresh().state == "running")
    waiting = [gq.wait.using(priority=priority).enqueue() for priority in (0, -1, 5, -2)]
    later = [gq.work.using(delay=f"{hours}h").enqueue(n=3) for hours in (2, 1)]
    cancelled = gq.work.using(delay="3h").enqueue(n=4)
    cancelled.cancel()
    wait_until(lambda: failed.refresh().state == "discarded")
    level(gq, redis_server)
    assert sorted(client.keys("bull:*:meta")) == ["bull:empty:meta", "bull:mail:meta", "bull:slow:meta"]
    assert client.lrange("bull:slow:active", 0, -1) == [str(running.id)]
    first, low, high, lowest = (str(job.id) for job in waiting)
    assert client.lrange("bull:slow:wait", 0, -1) == [first, high]
    assert client.zrange("bull:slow:prioritized", 0, -1) == [low, lowest]
    assert client.zrange("bull:mail:delayed", 0, -1) == [str(later[1].id), str(later[0].id)]
    assert set(client.zrange("bull:mail:completed", 0, -1)) == {str(before.id), str(done.id)}
    assert set(client.zrange("bull:mail:failed", 0, -1)) == {str(failed.id), str(cancelled.id)}
    job = client.hgetall(f"bull:mail:{failed.id}")
    assert (job["name"], job["failedReason"], job["progress"]) == ("work", "not this one", '{"percent":50,"note":"half"}')
    assert client.hget(f"bull:mail:{done.id}", "returnvalue") == '{"n":1}'
    assert client.lrange(f"bull:mail:{done.id}:logs", 0, -1) == ["at 1"]
    assert client.hget("bull:slow:meta", "concurrency") == "1"
    assert client.hget("bull:mail:metrics:completed", "count") == "2"
    make.gate.set()
    for job in waiting:
        job.result(timeout_s=DEADLINE_S)
    level(gq, redis_server)


def test_a_queue_that_is_held_shows_as_paused(make, start, redis_server, client):
    gq = make()
    start(gq)
    level(gq, redis_server)
    gq.pause("mail", reason="stop")
    wait_until(lambda: client.hexists("bull:mail:meta", "paused"))
    level(gq, redis_server)
    gq.resume("mail")
    wait_until(lambda: not client.hexists("bull:mail:meta", "paused"))
    told = lambda: [fields["event"] for _, fields in client.xrange("bull:mail:events")]  # noqa: E731
    wait_until(lambda: len(told()) > 1)
    assert told() == ["paused", "resumed"]


def test_listeners_hear_what_happened_to_a_job_in_its_order(make, start, redis_server, client):
    gq = make()
    start(gq)
    level(gq, redis_server)
    job = gq.work.enqueue(n=1)
    job.result(timeout_s=DEADLINE_S)
    heard(client, "mail", "completed")
    told = [fields for _, fields in client.xrange("bull:mail:events") if fields.get("jobId") == str(job.id)]
    names = [fields["event"] for fields in told]
    assert [name for name in names if name != "progress"] == ["added", "waiting", "active", "completed"]
    assert told[-1]["returnvalue"] == '{"n":1}'
    ids = [tuple(map(int, id_.split("-"))) for id_, _ in client.xrange("bull:mail:events")]
    assert ids == sorted(ids)


def test_finished_jobs_past_the_configured_number_go_with_their_bodies(make, start, redis_server, client):
    gq = make("keep_completed = 2\nkeep_failed = 1\n")
    start(gq)
    jobs = [gq.work.enqueue(n=n) for n in range(5)]
    failing = [gq.work.enqueue(n=n, fails=True) for n in range(3)]
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    wait_until(lambda: all(job.refresh().state == "discarded" for job in failing))
    level(gq, redis_server, (2, 1))
    bodies = [key for key in client.keys("bull:mail:*") if key.rpartition(":")[2].isdecimal()]
    assert len(bodies) == 3


@pytest.mark.parametrize("how", ["restart", "flush", "kill", "full", "read_only", "password"])
def test_the_queue_goes_on_without_the_server_and_the_mirror_comes_back(make, start, redis_server, how):
    gq = make()
    start(gq)
    gq.work.enqueue(n=1).result(timeout_s=DEADLINE_S)
    level(gq, redis_server)
    mend = break_server(redis_server, how)
    jobs = [gq.work.enqueue(n=n) for n in range(20)]
    for job in jobs:
        assert job.result(timeout_s=DEADLINE_S) == {"n": job.refresh().record.arguments["n"]}
    mend()
    level(gq, redis_server)


def break_server(server, how):
    if how == "restart":
        server.restart()
    elif how == "flush":
        server.flush()
    elif how == "kill":
        server.kill()
        return server.start
    elif how == "full":
        server.make_full()
        return server.make_roomy
    elif how == "read_only":
        server.make_read_only()
        return server.make_writable
    elif how == "password":
        server.set_password("secret")
        server.disconnect_clients()

        def no_password():
            with server.client() as client:
                client.config_set("requirepass", "")
            server.password = None

        return no_password
    return lambda: None


def test_what_somebody_else_wrote_is_put_right(make, start, redis_server, client, monkeypatch):
    monkeypatch.setattr(service, "CHECK_S", 0.2)
    gq = make()
    start(gq)
    job = gq.work.enqueue(n=1)
    job.result(timeout_s=DEADLINE_S)
    level(gq, redis_server)
    client.hset(f"bull:mail:{job.id}", "name", "else")
    client.delete("bull:mail:completed")
    client.set("bull:mail:wait", "a text")
    client.lpush("bull:mail:99", "stray")
    client.set("bull:mail:events", "no stream")
    client.set("bull:other:meta", "of somebody else")
    level(gq, redis_server)
    assert client.get("bull:other:meta") == "of somebody else"
    wait_until(lambda: client.type("bull:mail:events") != "string")  # none, or the stream that a late event began


def test_what_stands_in_place_of_the_events_does_not_stop_the_mirror(make, start, redis_server, client):
    gq = make()
    start(gq)
    level(gq, redis_server)
    gq.work.enqueue(n=1).result(timeout_s=DEADLINE_S)
    heard(client, "mail", "completed")
    client.set("bull:mail:events", "no stream")
    gq.work.enqueue(n=2).result(timeout_s=DEADLINE_S)
    level(gq, redis_server)
    wait_until(lambda: client.type("bull:mail:events") == "stream", "events are told again")


def test_a_living_bullmq_queue_is_not_overwritten(make, start, redis_server, client):
    client.hset("bull:mail:meta", "version", "bullmq:5.81.5")
    client.set("bull:mail:events", "theirs")
    gq = make()
    start(gq)
    wait_until(lambda: "is a queue of bullmq:5.81.5" in str(status(gq).get("error")))
    assert client.hgetall("bull:mail:meta") == {"version": "bullmq:5.81.5"}
    assert client.get("bull:mail:events") == "theirs"
    assert gq.work.enqueue(n=1).result(timeout_s=DEADLINE_S) == {"n": 1}


def status(gq):
    return next((dict(item.status) for item in gq.services() if item.name == "mirror"), {})


def test_a_late_writer_of_an_earlier_term_changes_nothing(make, start, redis_server, client):
    gq = make()
    start(gq)
    level(gq, redis_server)
    client.hset("gpuqueue-mirror:bull", "term", "7")
    job = gq.work.enqueue(n=1)
    job.result(timeout_s=DEADLINE_S)
    wait_until(lambda: "another worker writes the mirror (term 7" in str(status(gq).get("error")))
    assert not client.exists(f"bull:mail:{job.id}")


def test_workers_are_seen_by_name(make, start, redis_server, client):
    gq = make()
    worker = start(gq)
    names = lambda: {item["name"] for item in client.client_list()}  # noqa: E731
    wait_until(lambda: f"bull:mail:w:{worker.id}" in names(), "for Python")
    wait_until(lambda: f"bull:bWFpbA==:w:{worker.id}" in names(), "for Node")
    worker.stop()
    wait_until(lambda: not any(":w:" in name for name in names()))


def test_no_key_of_its_own_looks_like_one_of_bullmq(make, start, redis_server, client):
    gq = make()
    seen = set()
    stop = threading.Event()

    def watch():
        with redis_server.client() as watching:
            while not stop.is_set():
                seen.update(watching.keys("bull:*"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        jobs = [gq.work.enqueue(n=n) for n in range(200)]
        start(gq)
        for job in jobs:
            job.result(timeout_s=DEADLINE_S)
        level(gq, redis_server)
    finally:
        stop.set()
        thread.join()
    assert {key for key in seen if key.split(":")[1] not in ("mail", "slow", "empty")} == set()
    assert sorted(client.keys("gpuqueue-mirror:*")) == ["gpuqueue-mirror:bull"]


def test_nothing_is_mirrored_without_a_section(make_gpuqueue, start, client):
    gq = make_gpuqueue(QUEUES, plugins={"mirror": Mirror()}, discover_plugins=False)
    start(gq)
    assert gq.services() == []
    assert client.dbsize() == 0


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('url = "http://ann:pw@x?password=pw"', "url = 'http://x': use redis://HOST:PORT/DB"),
        ('url = "redis://x"\nprefix = "a:b"', "use only letters, digits"),
        ('url = "redis://x"\nkeep_completed = -1', "keep_completed"),
        ('adress = "redis://x"', "adress"),
    ],
)
def test_a_wrong_section_says_what_is_right(make_gpuqueue, toml, said):
    with pytest.raises(ConfigurationError, match=said):
        make_gpuqueue(f"[mirror]\n{toml}\n", plugins={"mirror": Mirror()}, discover_plugins=False)


def test_lag_is_told(make, start, redis_server):
    gq = make()
    start(gq)
    level(gq, redis_server)
    wait_until(lambda: status(gq).get("state") == "following" and status(gq)["lag_s"] == 0)
    assert (status(gq)["behind"], status(gq)["url"], status(gq)["error"]) == (0, redis_server.url, None)
