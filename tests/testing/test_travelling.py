"""Moving a queue object's clock: all that it decides by time follows, alone and together with time-machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import time_machine

from gpuqueue import JobExpired, Snooze, State, UsageError, Worker, backoff
from gpuqueue.store.sqlite import claims
from gpuqueue.testing import JobsStuck, eager, run_until_idle, travel
from gpuqueue.testing.waiting import DEADLINE_S

NOON = datetime(2031, 7, 1, 12, tzinfo=UTC)


def test_a_delayed_job_runs_two_hours_later(gq):
    job = gq.task(name="note")(lambda: 7).using(delay="2h").enqueue()
    with pytest.raises(JobsStuck, match="not due"):
        run_until_idle(gq)
    with travel(gq, "1h"), pytest.raises(JobsStuck):
        run_until_idle(gq)
    with travel(gq, timedelta(hours=1)), travel(gq, 3601):
        run_until_idle(gq)
    assert job.result(timeout_s=0) == 7
    assert gq.now() < job.finished_at


def test_the_clock_goes_on_from_where_it_was_moved_to_and_back_at_the_end(gq):
    before = gq.now()
    with travel(gq, NOON):
        assert timedelta(0) <= gq.now() - NOON < timedelta(minutes=1)
        with travel(gq, "30m"):
            assert gq.now() - NOON >= timedelta(minutes=30)
        with travel(gq, NOON - timedelta(days=1)):
            assert gq.now() < NOON
        assert gq.now() - NOON < timedelta(minutes=1)
    assert before <= gq.now() < before + timedelta(minutes=1)


def test_attempts_snoozes_and_expiry_follow(gq):
    attempts = []

    @gq.task(name="learn", max_attempts=2, backoff=backoff.fixed("1h"))
    def learn() -> None:
        attempts.append("learn")
        if len(attempts) == 1:
            raise ValueError

    @gq.task(name="snooze")
    def snooze() -> None:
        attempts.append("snooze")
        if attempts.count("snooze") == 1:
            raise Snooze("3h")

    with eager(gq):
        snooze.enqueue()
    attempts.clear()
    learn.enqueue()
    late = learn.using(delay="9h", expires_in="10h").enqueue()
    run_until_idle(gq, may_wait=True)
    assert attempts == ["learn"]
    with travel(gq, "61m"):
        run_until_idle(gq, may_wait=True)
        assert attempts == ["learn", "learn"]
        with travel(gq, "2h"):
            run_until_idle(gq, may_wait=True)
    assert attempts == ["learn", "learn", "snooze"]
    with travel(gq, "11h"):
        run_until_idle(gq)
        with pytest.raises(JobExpired):
            late.result(timeout_s=0)


def test_windows_pauses_and_rates_follow(make_queue):
    gq = make_queue('[queues.night]\npause = ["09:00-18:00"]\ntimezone = "UTC"\n[queues.slow]\nrate = "1/h"\n')
    for queue in ("night", "slow", "slow", "default"):
        gq.task(name=queue, queue=queue)(lambda: 1).enqueue()
    with travel(gq, NOON):
        gq.pause("default", until="2h")
        assert {job_id: left.reasons[0].reason for job_id, left in run_until_idle(gq, may_wait=True).items()} == {
            1: "window",
            3: "rate",
            4: "paused",
        }
        with travel(gq, "7h"):
            assert run_until_idle(gq) == {}


def test_a_journey_makes_no_worker_silent_but_a_silence_as_long_as_its_lease_does(gq):
    job = gq.task(name="one", max_attempts=2)(lambda: 1).enqueue()
    gq.store.workers.register(
        "elsewhere",
        host="another",
        pid=1,
        runtime_dir="/nowhere",
        queues=None,
        digest="",
        expires_at_us=gq.now_us() + 60_000_000,
        now_us=gq.now_us(),
    )

    def shorten(connection):
        connection.execute("UPDATE workers SET lease_us = 1000 WHERE id = 'elsewhere'")

    def take(connection):
        connection.execute(claims.TAKE, ("elsewhere", gq.now_us(), job.id))

    gq.store.engine.writer.run(take)
    run_until_idle(gq, may_wait=True)
    assert job.refresh().state is State.RUNNING
    with travel(gq, "10m"):
        run_until_idle(gq, may_wait=True)
        assert job.refresh().state is State.RUNNING
        with Worker(gq):
            gq.store.engine.writer.run(shorten)
            assert job.result(timeout_s=DEADLINE_S) == 1


def test_it_adds_to_the_journey_of_time_machine_which_alone_moves_what_tasks_read(gq):
    job = gq.task(name="when")(lambda: datetime.now(UTC).isoformat()).using(delay="2h").enqueue()
    later = gq.now() + timedelta(hours=1)
    with time_machine.travel(later, tick=False):
        assert gq.now() == later
        assert len(run_until_idle(gq, may_wait=True)) == 1
        with travel(gq, "1h"):
            assert gq.now() == later + timedelta(hours=1)
            run_until_idle(gq)
        assert gq.now() == later
    assert job.result(timeout_s=0) == later.isoformat()
    assert job.finished_at == later + timedelta(hours=1)


@pytest.mark.parametrize(
    ("to", "wrong"), [(datetime(2031, 7, 1), "time zone"), ("tomorrow", "to must be a duration"), (-1, "to")]
)
def test_what_is_no_time_is_refused(gq, to, wrong):
    with pytest.raises(UsageError, match=wrong), travel(gq, to):
        pass


def test_the_fixture_travels_on_from_call_to_call(gpuqueue_db, gpuqueue_travel, run_worker_until_idle):
    job = gpuqueue_db.task(name="one")(lambda: 1).using(delay="2h").enqueue()
    gpuqueue_travel("1h")
    gpuqueue_travel("61m")
    run_worker_until_idle()
    assert job.result(timeout_s=0) == 1
