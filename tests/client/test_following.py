"""Following the queue: a cursor of one's own, and many jobs as they are at one moment."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpuqueue import Discard, JobFailed, UsageError, current_job
from gpuqueue.testing.waiting import DEADLINE_S


def ids(entries):
    return [entry.id for entry in entries]


def names(follower):
    return [event.name for event in follower.read()]


def test_a_follower_reads_everything_from_its_beginning_until_it_passes_it(make_queue, start_worker):
    gq = make_queue()

    @gq.task(name="add")
    def add(a: int) -> int:
        return a + 1

    add.enqueue(a=0)
    follower = gq.follow("copy")
    assert follower.is_new
    assert follower.read() == []
    job = add.enqueue(a=1)
    start_worker(gq)
    assert job.result(timeout_s=DEADLINE_S) == 2
    told = [event for event in follower.read() if event.job_id == job.id]
    assert [event.name for event in told] == ["job_enqueued", "attempt_started", "job_finished"]
    again = gq.follow("copy")
    assert not again.is_new
    assert again.read() == follower.read()
    again.advance(told[0].id)
    assert follower.position == told[0].id
    assert told[0] not in follower.read()
    again.advance(1)
    assert told[0] not in follower.read(), "a cursor never goes back"
    with gq.read() as reader:
        again.advance(reader.last_event_id)
    assert follower.read() == []


def test_what_a_row_does_not_tell_is_told_too(make_queue, start_worker):
    gq = make_queue()

    @gq.task(name="talk")
    def talk() -> None:
        current_job().log("hello")

    follower = gq.follow("copy")
    job = talk.enqueue()
    start_worker(gq)
    job.result(timeout_s=DEADLINE_S)
    gq.pause("default", reason="now", by="me")
    gq.resume("default", by="me")
    assert [event.name for event in follower.read() if event.name in ("job_logged", "queue_paused", "queue_resumed")] == [
        "job_logged",
        "queue_paused",
        "queue_resumed",
    ]
    talk.using(delay="1h").enqueue()
    gq.store.jobs.prune("completed", before_us=gq.now_us(), limit=10)
    removed = [event for event in follower.read() if event.name == "job_removed"]
    assert [(event.job_id, event.queue, event.data) for event in removed] == [(job.id, "default", {"state": "completed"})]


def test_a_reader_tells_how_far_behind_each_follower_is(make_queue):
    gq = make_queue()
    follower, other = gq.follow("copy"), gq.follow("other")
    gq.pause("default", by="me")
    gq.resume("default", by="me")
    paused, resumed = follower.read()
    follower.advance(paused.id)
    other.advance(resumed.id)
    with gq.read() as reader:
        assert reader.followers() == {"copy": resumed.at, "other": None}


def test_a_follower_that_was_forgotten_says_so_and_can_be_made_anew(make_queue):
    gq = make_queue()
    follower = gq.follow("copy")
    follower.forget()
    with pytest.raises(UsageError, match=r"follower 'copy' is no longer registered; create it again with follow\(\)"):
        follower.read()
    assert gq.follow("copy").is_new


def test_a_reader_has_the_ids_in_the_order_of_the_queue_and_all_of_each_job(make_queue, start_worker):
    gq = make_queue()

    @gq.task(name="work")
    def work(n: int) -> dict[str, int]:
        current_job().log(f"at {n}")
        if n == 2:
            raise Discard("not this one")
        return {"n": n}

    jobs = [work.enqueue(n=n) for n in range(3)]
    worker = start_worker(gq, threads=1)
    with pytest.raises(JobFailed, match="not this one"):
        jobs[2].result(timeout_s=DEADLINE_S)
    worker.stop()
    low, high = work.using(priority=-1).enqueue(n=5), work.using(priority=3).enqueue(n=6)
    later, sooner = work.using(delay="2h").enqueue(n=7), work.using(delay="1h").enqueue(n=8)
    with gq.read() as reader:
        assert reader.queues() == ["default"]
        assert reader.counts() == gq.counts()
        assert ids(reader.entries("default", "available")) == [high.id, low.id]
        assert ids(reader.entries("default", "scheduled")) == [sooner.id, later.id]
        assert ids(reader.entries("default", "completed", newest_first=True, limit=1)) == [jobs[1].id]
        found = reader.records([*(job.id for job in jobs), 999])
        assert ids(reader.entries("default", "completed", "discarded", "cancelled")) == [job.id for job in jobs]
        minutes = reader.finished_by_minute("default", "completed", since=gq.now() - timedelta(hours=1))
        with pytest.raises(UsageError, match="unknown state 'done'"):
            reader.entries("default", "done")
        with pytest.raises(UsageError, match="these states have no common order: available, running"):
            reader.entries("default", "available", "running")
    assert sum(minutes.values()) == 2 and all(moment.second == moment.microsecond == 0 for moment in minutes)
    assert sorted(found) == [job.id for job in jobs]
    assert found[jobs[0].id].result == '{"n":0}'
    assert [line.message for line in found[jobs[0].id].logs] == ["at 0"]
    assert found[jobs[2].id].result is None and found[jobs[2].id].job.error.message == "not this one"
