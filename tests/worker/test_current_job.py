"""What a task may ask and say of its job, and what becomes of an attempt that says so itself."""

from __future__ import annotations

import contextvars
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest

from gpuqueue import Discard, JobCancelled, JobFailed, Retry, Snooze, UsageError, backoff, current_job, hookimpl
from gpuqueue.store.sqlite.queries import timeline
from gpuqueue.testing.waiting import DEADLINE_S


def test_a_task_knows_its_job(gq, start_worker):
    @gq.task(name="look", queue="work", max_attempts=3, timeout="1h")
    def look() -> dict:
        job = current_job()
        return {
            "is": [job.id, job.queue, job.task, job.attempt, job.max_attempts, job.cancelled],
            "deadline": job.deadline.isoformat(),
        }

    start_worker(gq)
    job = look.enqueue()
    told = job.result(timeout_s=DEADLINE_S)
    assert told["is"] == [job.id, "work", "look", 1, 3, False]
    lasts = datetime.fromisoformat(told["deadline"]) - job.started_at
    assert lasts == pytest.approx(timedelta(hours=1), abs=timedelta(seconds=5))


def test_each_thread_has_its_own_job_and_one_that_a_task_starts_may_be_given_it(gq, start_worker):
    meeting = threading.Barrier(2)

    @gq.task(name="meet")
    def meet() -> list:
        meeting.wait(DEADLINE_S)
        found = []
        for run in (contextvars.copy_context().run, contextvars.Context().run):
            thread = threading.Thread(target=lambda run=run: found.append(run(asked)))
            thread.start()
            thread.join(DEADLINE_S)
        return [current_job().id, *found]

    def asked() -> int | str:
        try:
            return current_job().id
        except UsageError as error:
            return str(error).partition(":")[0]

    start_worker(gq, threads=2)
    jobs = [meet.enqueue(), meet.enqueue()]
    outside = "current_job() works only inside a task"
    assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == [[job.id, job.id, outside] for job in jobs]
    with pytest.raises(UsageError, match="no job runs here"):
        current_job()


def test_progress_log_and_output_are_seen_while_the_job_runs_and_afterwards(gq, start_worker, gate, until):
    @gq.task(name="speak")
    def speak() -> None:
        job = current_job()
        job.progress(0.25, note="a quarter")
        job.progress(0.5, note="half")
        job.log("first line")
        job.log({"any": "thing"})
        job.emit("once ")
        job.emit("upon a time")
        gate.pass_through()
        job.log("last line")

    start_worker(gq)
    job = speak.enqueue()
    gate.wait_reached()
    until(lambda: job.refresh().progress == 0.5, "progress")
    assert job.record.progress_note == "half"
    until(lambda: len(job.logs()) == 2, "two lines")
    pieces = job.stream(timeout_s=DEADLINE_S)
    assert next(pieces) == "once upon a time"
    gate.open()
    job.result(timeout_s=DEADLINE_S)
    lines = job.logs()
    assert [line.message for line in lines] == ["first line", "{'any': 'thing'}", "last line"]
    assert [line.message for line in job.logs(after=lines[1].seq)] == ["last line"]
    assert all(abs(datetime.now(UTC) - line.at) < timedelta(minutes=1) for line in lines)
    assert (job.refresh().state, job.progress) == ("completed", 0.5)


def test_a_new_attempt_begins_its_progress_anew_and_keeps_the_log(gq, start_worker):
    @gq.task(name="twice", max_attempts=2, backoff=backoff.fixed(0))
    def twice() -> None:
        job = current_job()
        job.log(f"attempt {job.attempt}")
        if job.attempt == 1:
            job.progress(0.9)
            raise RuntimeError("once more")

    start_worker(gq)
    job = twice.enqueue()
    job.result(timeout_s=DEADLINE_S)
    assert [line.message for line in job.logs()] == ["attempt 1", "attempt 2"]
    assert job.logs()[0].lease < job.logs()[1].lease
    assert job.refresh().progress is None


@pytest.mark.parametrize("fraction", [-0.1, 1.5, "half", None])
def test_progress_that_is_no_fraction_is_the_tasks_error(gq, start_worker, fraction):
    @gq.task(name="wrong")
    def wrong() -> None:
        current_job().progress(fraction)

    start_worker(gq)
    with pytest.raises(JobFailed, match="a number from 0 to 1"):
        wrong.enqueue().result(timeout_s=DEADLINE_S)


def test_progress_is_told_to_plugins(make_queue, start_worker, until):
    told = []

    class Diary:
        @hookimpl
        def job_progressed(self, details):
            told.append((details.job_id, details.data["progress"], details.data["note"]))

    gq = make_queue(plugins=[Diary()])

    @gq.task(name="speak")
    def speak() -> None:
        current_job().progress(1, note="done")

    start_worker(gq)
    job = speak.enqueue()
    job.result(timeout_s=DEADLINE_S)
    assert until(lambda: told, "the event") == [(job.id, 1.0, "done")]


def test_a_long_loop_sees_that_it_was_cancelled(gq, start_worker, gate, make_gate):
    stopped = make_gate()

    @gq.task(name="loop")
    def loop() -> str:
        gate.reached.set()
        while not current_job().cancelled:
            stopped.opened.wait(0.01)
        return "what it has so far"

    start_worker(gq)
    job = loop.enqueue()
    gate.wait_reached()
    job.cancel()
    assert job.result(timeout_s=DEADLINE_S) == "what it has so far"


def test_a_check_ends_an_attempt_that_was_cancelled_even_inside_a_broad_except(gq, start_worker, gate, make_gate):
    pause = make_gate()

    @gq.task(name="loop")
    def loop() -> None:
        gate.reached.set()
        while True:
            try:
                current_job().check()
                pause.opened.wait(0.01)
            except Exception:
                pass

    start_worker(gq)
    job = loop.enqueue()
    gate.wait_reached()
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)


def test_a_task_called_as_a_function_speaks_to_the_log_only(gq, caplog):
    @gq.task(name="speak")
    def speak() -> str:
        job = current_job()
        job.progress(0.5)
        job.emit("text")
        job.check()
        job.log("a line")
        return f"{job.task} {job.attempt} {job.deadline} {job.cancelled}"

    with caplog.at_level(logging.INFO, logger="gpuqueue.job"):
        assert speak() == "speak 1 None False"
    assert "a line" in caplog.text
    assert gq.jobs() == []


# --- verdicts ---


def run_once(gq, start_worker, until, raises, **settings):
    """Run a task that raises this in its first attempt and returns 7 in the next; returns the job after the first."""
    seen = []

    @gq.task(name="verdict", **settings)
    def verdict() -> int:
        seen.append(current_job().attempt)
        if len(seen) == 1:
            raise raises
        return 7

    start_worker(gq)
    job = verdict.enqueue()
    until(lambda: seen and job.refresh().state != "running", "the first attempt's end")
    return job, seen


def test_a_task_asks_for_another_attempt_at_a_time_of_its_own(gq, start_worker, until):
    job, _ = run_once(gq, start_worker, until, Retry("1h", reason="not ready"), max_attempts=2)
    record = job.record
    assert (record.state, record.attempt, record.error.message) == ("retryable", 1, "not ready")
    assert record.error.traceback == ""
    assert timedelta(minutes=59) < record.scheduled_at - record.started_at < timedelta(minutes=61)


def test_without_a_time_the_backoff_says_when(gq, start_worker, until):
    job, _ = run_once(gq, start_worker, until, Retry(), max_attempts=2, backoff=backoff.fixed("2h", jitter=0))
    assert job.state == "retryable"
    assert timedelta(minutes=119) < job.record.scheduled_at - job.started_at < timedelta(minutes=121)


def test_a_retry_of_the_last_attempt_discards_the_job(gq, start_worker, until):
    job, _ = run_once(gq, start_worker, until, Retry("1h", reason="still not ready"))
    assert (job.state, job.error.message) == ("discarded", "still not ready")


def test_a_snooze_spends_no_attempt(gq, start_worker, until):
    job, seen = run_once(gq, start_worker, until, Snooze(0, reason="closed"))
    assert job.result(timeout_s=DEADLINE_S) == 7
    assert seen == [1, 1]
    with gq.store.engine.lent() as connection:
        (snoozed,) = timeline(connection, job.id)
    assert (snoozed["outcome"], snoozed["error"].code, snoozed["error"].message) == ("snoozed", "snoozed", "closed")


def test_a_snooze_until_a_moment_keeps_it(gq, start_worker, until):
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    job, _ = run_once(gq, start_worker, until, Snooze(until=moment, reason="until tomorrow"))
    assert (job.state, job.record.scheduled_at, job.attempt) == ("retryable", moment, 0)
    assert "until tomorrow" in str(job.explain())


def test_a_discard_ends_the_job_whatever_attempts_are_left(gq, start_worker, until):
    job, seen = run_once(gq, start_worker, until, Discard("the order was cancelled", code="obsolete"), max_attempts=9)
    assert (job.state, job.error.code, job.error.message) == ("discarded", "obsolete", "the order was cancelled")
    with pytest.raises(JobFailed, match="the order was cancelled"):
        job.result(timeout_s=DEADLINE_S)
    assert seen == [1]


def test_errors_are_retried_or_final_as_the_task_says(gq, start_worker, until):
    job, _ = run_once(gq, start_worker, until, KeyError("x"), max_attempts=5, discard_on=LookupError)
    assert (job.state, job.error.message) == ("discarded", "KeyError: 'x'")
    assert "raise raises" in job.error.traceback


def test_the_policies_are_not_asked_about_what_a_task_has_decided(make_queue, start_worker, until):
    asked = []

    class Strict:
        @hookimpl
        def attempt_failed(self, details):
            asked.append(type(details.error).__name__)
            return Discard("never twice")

    gq = make_queue(plugins=[Strict()])
    job, _ = run_once(gq, start_worker, until, Retry("1h"), max_attempts=2)
    assert (job.state, asked) == ("retryable", [])


def test_a_check_past_the_deadline_ends_the_attempt_as_timed_out_before_the_worker_says_so(gq, start_worker, monkeypatch):
    monkeypatch.setattr("gpuqueue.worker.attempts.Attempts.stop_overdue", lambda attempts: [])

    @gq.task(name="late", timeout="50ms")
    def late() -> None:
        while True:
            current_job().check()

    start_worker(gq)
    with pytest.raises(JobFailed, match="ran longer than its timeout of 50 ms"):
        late.enqueue().result(timeout_s=DEADLINE_S)
