"""Running a worker until nothing can start: what it runs, what it leaves, and how it tells what is stuck."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from gpuqueue import Retry, Snooze, backoff, hookimpl
from gpuqueue.plugins import Hold
from gpuqueue.testing import JobsStuck, run_until_idle, wait_until


def test_all_that_can_start_is_run_in_this_thread_of_the_test(gq):
    @gq.task(name="count")
    def count(number: int) -> int:
        if number:
            count.enqueue(number=number - 1)
        return number

    first = count.enqueue(number=3)
    before = threading.active_count()
    assert run_until_idle(gq) == {}
    assert gq.counts()["default"] == {"completed": 4}
    assert first.result(timeout_s=0) == 3
    wait_until(lambda: threading.active_count() <= before, "the end of the worker's threads")


def test_an_attempt_that_is_tried_again_at_once_is_no_end(gq):
    attempts = []

    @gq.task(name="learn", max_attempts=5, backoff=backoff.fixed("0s"))
    def learn() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise Retry("0s")
        return len(attempts)

    job = learn.enqueue()
    run_until_idle(gq)
    assert job.result(timeout_s=0) == 3


def test_what_waits_is_told_with_every_reason(make_queue):
    gq = make_queue("[queues.closed]\n[queues.open]\n")

    @gq.task(name="snooze", queue="open")
    def snooze() -> None:
        raise Snooze("1h", reason="still closed")

    gq.pause("closed", reason="inventory", by="ana")
    jobs = [
        gq.verb("stock", queue="closed").enqueue(),
        snooze.enqueue(),
        gq.verb("later", queue="open", delay=timedelta(hours=2)).enqueue(),
    ]
    with pytest.raises(JobsStuck) as caught:
        run_until_idle(gq)
    told = str(caught.value)
    assert told.startswith("3 jobs are unable to start:\n")
    assert "stock in closed, available: job 1: waiting\n  - paused: paused by ana (inventory)" in told
    assert "snooze in open, retryable: job 2: waiting\n  - retryable: still closed; waiting for its next attempt" in told
    assert "later in open, scheduled: job 3: waiting\n  - scheduled: not due" in told
    assert "no worker" not in told
    assert set(caught.value.explanations) == {job.id for job in jobs}
    assert run_until_idle(gq, may_wait=True).keys() == caught.value.explanations.keys()


def test_a_queue_that_the_worker_does_not_serve_is_a_reason(make_queue):
    gq = make_queue("[queues.a]\n[queues.b]\n")
    gq.task(name="one", queue="a")(lambda: 1).enqueue()
    gq.task(name="two", queue="b")(lambda: 2).enqueue()
    with pytest.raises(JobsStuck, match="no worker serves queue 'b'"):
        run_until_idle(gq, queues=["a"])
    assert gq.counts() == {"a": {"completed": 1}, "b": {"available": 1}}


def test_a_job_that_nobody_knows_to_run_is_told(gq):
    gq.verb("unheard").enqueue()
    with pytest.raises(JobsStuck, match="does not know the task 'unheard'"):
        run_until_idle(gq)


class WhenReached(threading.Timer):
    """A timer that begins when the gate is reached, however busy the machine is."""

    def run(self):
        self.gate.wait_reached()
        super().run()


def test_a_job_that_does_not_end_stops_the_worker_after_a_time(gq, gate, monkeypatch):
    monkeypatch.setattr("gpuqueue.testing.idle.threading.Timer", WhenReached)
    monkeypatch.setattr(WhenReached, "gate", gate, raising=False)
    gq.task(name="wait")(gate.pass_through).enqueue()
    with pytest.raises(JobsStuck, match=r"(?s)the worker was stopped after 0.5 s; 1 job is still running:\nwait in default"):
        run_until_idle(gq, timeout_s=0.5)
    assert gq.workers() == []


def test_many_stuck_jobs_are_counted_and_not_all_told(gq):
    gq.pause("default")
    gq.enqueue_many([(gq.verb("stock"), {})] * 30)
    with pytest.raises(JobsStuck) as caught:
        run_until_idle(gq)
    assert str(caught.value).startswith("30 jobs are unable to start")
    assert str(caught.value).endswith("… and 10 more")


def test_a_hold_of_a_plugin_that_ends_while_the_worker_runs_is_waited_for_no_longer(make_queue):
    class Once:
        asked = 0

        @hookimpl
        def queue_hold(self, details):
            self.asked += 1
            return Hold("once", "the first time") if self.asked == 1 else None

    gq = make_queue(plugins=[Once()])
    job = gq.task(name="one")(lambda: 1).enqueue()
    run_until_idle(gq)
    assert job.result(timeout_s=0) == 1


def test_waiting_for_what_never_comes_says_what_it_was():
    with pytest.raises(AssertionError, match="timed out waiting for: snow"):
        wait_until(lambda: False, "snow", timeout_s=0)
    assert wait_until(lambda: 7) == 7
