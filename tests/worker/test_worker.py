"""A worker: what it claims, how many at once, how it stops, and what it does when something goes wrong."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from gpuqueue import ConfigurationError, GPUQueue, JobCancelled, JobFailed, UnknownQueue, Worker, hookimpl
from gpuqueue.domain.job import State
from gpuqueue.domain.verdicts import Retry
from gpuqueue.store.sqlite.queries import timeline
from gpuqueue.testing.waiting import DEADLINE_S
from tests.history import History
from tests.processes import started


@contextmanager
def changed(gq):
    """A connection for changing rows behind everybody's back."""
    with gq.store.engine.lent() as connection:
        yield connection


def states(gq, *jobs):
    return [job.refresh().state for job in jobs]


# --- running ---


def test_threads_run_jobs_side_by_side(gq, start_worker):
    meeting = threading.Barrier(3)

    @gq.task(name="meet")
    def meet() -> None:
        meeting.wait(DEADLINE_S)

    start_worker(gq, threads=3)
    for job in [meet.enqueue() for _ in range(3)]:
        job.result(timeout_s=DEADLINE_S)


def test_the_first_decision_knows_what_the_card_says(ai):
    temperatures = []

    class Watch:
        @hookimpl
        def queue_hold(self, details):
            reading = details.view.devices["gpu0"].reading
            temperatures.append(reading and reading.temperature_c)

    ai.card.temperature_c = 77
    gq = ai.make_queue(ai.toml, plugins=[Watch()])
    Worker(gq, burst=True).run()
    assert set(temperatures) == {77}


def test_what_a_worker_noted_of_a_hold_is_in_the_view_of_all(make_queue):
    toml = '[queues.night]\npause = ["00:00-12:00", "12:00-00:00"]\n[queues.mail]\n'
    gq = make_queue(toml)
    assert gq.view().queues["night"].noted_reasons == ()
    Worker(gq, burst=True).run()
    gq.pause("mail")
    Worker(make_queue(toml), burst=True).run()
    assert {name: item.noted_reasons for name, item in gq.view().queues.items()} == {"night": ("window",), "mail": ("paused",)}
    gq.resume("mail")
    Worker(gq, burst=True).run()
    assert gq.view().queues["mail"].noted_reasons == ()


def test_a_queues_concurrency_holds_over_all_workers(make_queue, start_worker, make_gate):
    gates = [make_gate() for _ in range(4)]
    settings = "[queues.narrow]\nconcurrency = 2\n[queues.wide]\n"

    def declare(gq):
        @gq.task(name="work", queue="narrow")
        def work(number: int) -> None:
            gates[number].pass_through()

        @gq.task(name="noop", queue="wide")
        def noop() -> None: ...

        return gq, work, noop

    gq, work, noop = declare(make_queue(settings))
    other, *_ = declare(make_queue(settings, name="other.toml"))
    start_worker(gq, threads=4)
    start_worker(other, threads=4)
    jobs = [work.enqueue(number=number) for number in range(4)]
    gates[0].wait_reached()
    gates[1].wait_reached()
    for _ in range(20):  # both workers look again and again
        noop.enqueue().result(timeout_s=DEADLINE_S)
    assert [str(state) for state in states(gq, *jobs)] == ["running", "running", "available", "available"]
    gates[1].open()
    gates[2].wait_reached()
    assert str(jobs[3].refresh().state) == "available"
    for gate in gates:
        gate.open()
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)


def test_higher_priority_runs_first_then_the_older(gq, start_worker):
    order: list[int] = []
    gq.queue("one", concurrency=1)

    @gq.task(name="note", queue="one")
    def note(number: int) -> None:
        order.append(number)

    jobs = [note.using(priority=priority).enqueue(number=number) for number, priority in enumerate([0, 5, 0, 9])]
    start_worker(gq)
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    assert order == [3, 1, 0, 2]


def test_short_jobs_are_not_stuck_behind_a_long_one(gq, start_worker, gate):
    @gq.task(name="long")
    def long() -> None:
        gate.pass_through()

    @gq.task(name="short")
    def short() -> None: ...

    start_worker(gq, threads=2)
    for job in gq.enqueue_many([(short, {})] * 200):
        job.result(timeout_s=DEADLINE_S)
    mixed = gq.enqueue_many([(short, {})] * 100 + [(long, {})] + [(short, {})] * 200)
    for job in mixed[:100] + mixed[101:]:
        job.result(timeout_s=DEADLINE_S)
    assert mixed[100].refresh().state == "running"


def test_a_worker_whose_threads_are_all_busy_leaves_short_jobs_to_another(make_queue, start_worker, gate):
    def declare(gq):
        @gq.task(name="long")
        def long() -> None:
            gate.pass_through()

        @gq.task(name="short")
        def short() -> None: ...

        return gq, long, short

    gq, long, short = declare(make_queue())
    start_worker(gq, threads=1)
    for job in gq.enqueue_many([(short, {})] * 300):  # now it knows that jobs are short, and claims ahead
        job.result(timeout_s=DEADLINE_S)
    jobs = gq.enqueue_many([(long, {})] + [(short, {})] * 100)
    gate.wait_reached()
    other, *_ = declare(make_queue())
    start_worker(other, threads=1)
    for job in jobs[1:]:
        job.result(timeout_s=DEADLINE_S)
    assert jobs[0].refresh().state == "running"


def test_a_worker_serves_only_the_queues_it_was_given(gq, start_worker, until):
    @gq.task(name="mine", queue="mine")
    def mine() -> None: ...

    @gq.task(name="theirs", queue="theirs")
    def theirs() -> None: ...

    left = theirs.enqueue()
    start_worker(gq, queues=["mine"])
    mine.enqueue().result(timeout_s=DEADLINE_S)
    assert left.refresh().state == "available"
    assert "no_worker: no worker serves queue 'theirs'" in str(left.explain())
    with pytest.raises(UnknownQueue, match=r"'mien'.*did you mean 'mine'"):
        start_worker(gq, queues=["mien"])


def test_a_burst_ends_when_nothing_more_can_start_now(gq):
    @gq.task(name="work")
    def work(again: int) -> None:
        if again:
            work.enqueue(again=again - 1)

    work.enqueue(again=3)
    later = work.using(delay="1h").enqueue(again=0)
    Worker(gq, burst=True).run()
    assert gq.counts() == {"default": {"completed": 4, "scheduled": 1}}
    assert gq.workers() == []
    assert later.refresh().state == "scheduled"


def test_scheduled_jobs_begin_when_they_are_due(gq, start_worker):
    @gq.task(name="work")
    def work() -> int:
        return 7

    start_worker(gq)
    job = work.using(delay="400ms").enqueue()
    assert job.result(timeout_s=DEADLINE_S) == 7
    assert job.started_at >= job.record.scheduled_at


def test_a_task_that_the_worker_does_not_know_is_postponed_and_not_lost(gq, make_queue, start_worker, until, caplog):
    @gq.task(name="new")
    def new() -> int:
        return 7

    job = new.enqueue()
    unknowing = start_worker(make_queue())
    until(lambda: job.refresh().state == "retryable")
    assert (job.attempt, job.error.code) == (0, "unknown_task")
    assert "does not know the task 'new'; start a worker with --app" in str(job.explain())
    unknowing.stop()
    start_worker(gq)
    assert job.retry().result(timeout_s=DEADLINE_S) == 7


# --- failures ---


def test_a_task_that_exits_fails_and_the_worker_goes_on(gq, start_worker):
    @gq.task(name="leave")
    def leave() -> None:
        sys.exit(3)

    @gq.task(name="work")
    def work() -> int:
        return 1

    start_worker(gq, threads=1)
    with pytest.raises(JobFailed, match="SystemExit: 3"):
        leave.enqueue().result(timeout_s=DEADLINE_S)
    assert work.enqueue().result(timeout_s=DEADLINE_S) == 1


def test_a_result_that_is_not_json_discards_the_job_without_another_attempt(gq, start_worker):
    @gq.task(name="work", max_attempts=5)
    def work() -> object:
        return {1, 2}

    start_worker(gq)
    job = work.enqueue()
    with pytest.raises(JobFailed, match=f"the result of job {job.id} must be JSON"):
        job.result(timeout_s=DEADLINE_S)
    assert (job.attempt, job.error.code) == (1, "result")


def test_a_result_beyond_the_limit_discards_the_job(make_queue, start_worker):
    gq = make_queue('max_payload = "2kB"\n')

    @gq.task(name="work")
    def work() -> str:
        return "x" * 3000

    start_worker(gq)
    with pytest.raises(JobFailed, match="max_payload"):
        work.enqueue().result(timeout_s=DEADLINE_S)


class RetryAtOnce:
    @hookimpl
    def attempt_failed(self, details):
        return Retry(0) if details.lease.attempt < details.lease.max_attempts else None


def test_a_failed_job_is_tried_again_until_its_attempts_are_spent(make_queue, start_worker):
    gq = make_queue(plugins=[RetryAtOnce()])
    begun = []

    @gq.task(name="fail", max_attempts=3)
    def fail() -> None:
        begun.append(1)
        raise RuntimeError(f"attempt {len(begun)}")

    start_worker(gq)
    job = fail.enqueue()
    with pytest.raises(JobFailed, match="attempt 3"):
        job.result(timeout_s=DEADLINE_S)
    with gq.store.engine.lent() as connection:
        lines = timeline(connection, job.id)
    assert [(line["attempt"], line["outcome"], line["error"].message) for line in lines] == [
        (1, "retried", "RuntimeError: attempt 1"),
        (2, "retried", "RuntimeError: attempt 2"),
        (3, "discarded", "RuntimeError: attempt 3"),
    ]


# --- stopping jobs ---


def test_a_job_that_does_not_stop_in_time_is_given_up_and_others_go_on(gq, start_worker, gate):
    @gq.task(name="stuck", timeout="100ms")
    def stuck() -> str:
        gate.pass_through()
        return "too late"

    @gq.task(name="work")
    def work() -> int:
        return 1

    worker = start_worker(gq, threads=1)
    job = stuck.enqueue()
    with pytest.raises(JobFailed, match=r"ran longer than its timeout of 100 ms") as caught:
        job.result(timeout_s=DEADLINE_S)
    assert caught.value.code == "timed_out"
    assert work.enqueue().result(timeout_s=DEADLINE_S) == 1  # in another thread
    worker.stop()
    gate.open()
    assert gq.job(job.id).state == "discarded"
    assert gq.workers() == []


def test_a_job_that_was_given_up_may_be_tried_again_beside_its_old_thread(make_queue, start_worker, make_gate):
    gq = make_queue(plugins=[RetryAtOnce()])
    gates = [make_gate(), make_gate()]
    gates[1].open()
    begun = []

    @gq.task(name="stuck", timeout="100ms", max_attempts=2)
    def stuck() -> int:
        begun.append(1)
        number = len(begun)
        gates[number - 1].pass_through()
        return number

    start_worker(gq, threads=1)
    job = stuck.enqueue()
    assert job.result(timeout_s=DEADLINE_S) == 2
    gates[0].open()
    assert (job.refresh().state, job.attempt) == ("completed", 2)


def test_a_running_job_is_cancelled_by_another_process(gq, make_queue, start_worker, gate):
    @gq.task(name="work")
    def work() -> None:
        gate.pass_through()

    start_worker(gq)
    job = work.enqueue()
    gate.wait_reached()
    assert make_queue().job(job.id).cancel() is True
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)
    assert job.error.message == "cancelled while running"


def test_a_job_that_ends_although_it_was_cancelled_has_its_result(gq, start_worker, gate):
    @gq.task(name="work")
    def work() -> int:
        gate.pass_through()
        return 7

    start_worker(gq)
    job = work.enqueue()
    gate.wait_reached()
    job.cancel()
    gate.open()
    assert job.result(timeout_s=DEADLINE_S) == 7


# --- the end of a worker ---


def test_a_worker_that_stops_lets_its_jobs_end(gq, start_worker, gate):
    @gq.task(name="work")
    def work() -> int:
        gate.pass_through()
        return 7

    worker = start_worker(gq, threads=1)
    job = work.enqueue()
    gate.wait_reached()
    worker.request_stop()
    gate.open()
    worker.stop()
    assert (job.refresh().state, job.attempt) == ("completed", 1)
    assert work.enqueue().state == "available"


def test_jobs_that_outlast_the_grace_are_given_back_unspent(gq, start_worker, gate):
    @gq.task(name="work")
    def work() -> None:
        gate.pass_through()

    worker = start_worker(gq)
    job = work.enqueue()
    gate.wait_reached()
    worker.stop(grace_s=0)
    assert (job.refresh().state, job.attempt, job.record.crashes) == ("available", 0, 0)


def test_a_second_request_to_stop_does_not_wait_for_the_grace(gq, start_worker, gate):
    @gq.task(name="work")
    def work() -> None:
        gate.pass_through()

    worker = start_worker(gq)
    job = work.enqueue()
    gate.wait_reached()
    worker.request_stop()
    worker.request_stop()
    began_s = time.monotonic()
    worker.stop()
    assert time.monotonic() - began_s < 15  # the grace is 30 s
    assert (job.refresh().state, job.attempt) == ("available", 0)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_worker_process_stops_on_sigterm_and_gives_its_job_back_on_the_second(tmp_path, gq, until):
    (tmp_path / "app.py").write_text(
        "import threading\n"
        "from gpuqueue import GPUQueue, Worker\n"
        f"gq = GPUQueue({str(gq.database)!r})\n"
        "@gq.task(name='work')\n"
        "def work():\n"
        "    threading.Event().wait(120)\n"
        "if __name__ == '__main__':\n"
        "    Worker(gq).run()\n"
    )

    @gq.task(name="work")
    def work() -> None: ...

    history = History(gq)
    with started([sys.executable, "app.py"], cwd=tmp_path) as process:
        job = work.enqueue()
        until(lambda: job.refresh().state == "running")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0
    assert (job.refresh().state, job.attempt, job.record.crashes) == ("available", 0, 0)
    history.check(unfinished=[job.id])


def test_a_worker_is_started_once(gq, start_worker):
    worker = start_worker(gq)
    with pytest.raises(ConfigurationError, match="already been started"):
        worker.start()


def test_a_worker_works_while_its_block_runs(gq):
    @gq.task(name="work")
    def work() -> int:
        return 1

    with Worker(gq):
        assert work.enqueue().result(timeout_s=DEADLINE_S) == 1
    assert gq.workers() == []


def test_a_worker_that_lost_its_lease_stops_its_jobs_and_begins_anew(make_queue, start_worker, make_gate, until):
    gq = make_queue('[worker]\nlease = "300ms"\n')
    gates = [make_gate(), make_gate()]
    begun = []

    @gq.task(name="work")
    def work() -> int:
        begun.append(1)
        number = len(begun)
        gates[number - 1].pass_through()
        return number

    gates[1].open()
    worker = start_worker(gq)
    first_id = worker.id
    job = work.enqueue()
    gates[0].wait_reached()
    with changed(gq) as connection:
        connection.execute("DELETE FROM workers")
    assert job.result(timeout_s=DEADLINE_S) == 2
    gates[0].open()
    assert worker.id != first_id
    assert [info.id for info in gq.workers()] == [worker.id]
    assert (job.refresh().state, job.record.crashes) == ("completed", 0)


# --- agreeing ---


def test_a_worker_with_other_settings_refuses_and_says_what_differs(make_queue, start_worker):
    first = make_queue("[queues.mail]\nconcurrency = 1\n")
    start_worker(first)
    second = make_queue("[queues.mail]\nconcurrency = 2\n", name="second.toml")
    with pytest.raises(ConfigurationError, match=r"(?s)queues.mail.concurrency: 2 here, 1 in the database.*--accept-config"):
        start_worker(second)
    assert len(first.workers()) == 1

    start_worker(second, accept_config=True)
    assert first.queue_settings("mail").concurrency == 2


def test_settings_of_a_worker_that_is_gone_bind_nobody(make_queue, start_worker):
    start_worker(make_queue("[queues.mail]\nconcurrency = 1\n")).stop()
    second = make_queue("[queues.mail]\nconcurrency = 2\n", name="second.toml")
    start_worker(second)
    assert second.queue_settings("mail").concurrency == 2


# --- upkeep ---


def test_finished_jobs_are_pruned_after_their_retention(make_queue, start_worker, until, monkeypatch):
    monkeypatch.setattr("gpuqueue.worker.maintenance.RETENTION_EVERY_S", 0.0)
    gq = make_queue('[retention]\ncompleted = "0s"\ncancelled = "forever"\n')

    @gq.task(name="work")
    def work() -> None: ...

    done = [work.enqueue() for _ in range(3)]
    cancelled = work.enqueue()
    cancelled.cancel()
    work.using(delay="1h").enqueue()
    start_worker(gq)
    until(lambda: gq.counts() == {"default": {"scheduled": 1, "cancelled": 1}})
    assert [job.id for job in gq.jobs()] == [done[-1].id + 2, cancelled.id]


def test_a_broken_connection_does_not_end_the_worker(gq, start_worker, until, caplog):
    @gq.task(name="work")
    def work() -> int:
        return 1

    start_worker(gq)
    work.enqueue().result(timeout_s=DEADLINE_S)
    with changed(gq) as connection, caplog.at_level(logging.WARNING, "gpuqueue.worker"):
        connection.execute("ALTER TABLE queues RENAME TO hidden")
        until(lambda: any("no such table: queues" in record.getMessage() for record in caplog.records))
        connection.execute("ALTER TABLE hidden RENAME TO queues")
    assert work.enqueue().result(timeout_s=DEADLINE_S) == 1


@contextmanager
def unwritable_endings(gq):
    """While the block runs, no attempt's end can be written."""
    with changed(gq) as connection:
        connection.execute("ALTER TABLE counters RENAME TO hidden")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE hidden RENAME TO counters")


def test_an_end_that_cannot_be_written_is_written_later(gq, start_worker, gate, until, caplog):
    @gq.task(name="work")
    def work() -> int:
        gate.pass_through()
        return 7

    start_worker(gq, threads=1)
    job = work.enqueue()
    gate.wait_reached()
    with unwritable_endings(gq):
        gate.open()
        until(lambda: "no such table" in caplog.text)
    assert job.result(timeout_s=DEADLINE_S) == 7
    assert work.enqueue().result(timeout_s=DEADLINE_S) == 7


def test_the_end_of_a_job_that_was_given_up_is_written_later_too(gq, start_worker, gate, until, caplog):
    @gq.task(name="stuck", timeout="50ms")
    def stuck() -> None:
        gate.pass_through()

    @gq.task(name="work")
    def work() -> int:
        return 7

    start_worker(gq, threads=1)
    job = stuck.enqueue()
    gate.wait_reached()
    with unwritable_endings(gq):
        until(lambda: "no such table" in caplog.text)
    with pytest.raises(JobFailed, match="longer than its timeout"):
        job.result(timeout_s=DEADLINE_S)
    assert work.enqueue().result(timeout_s=DEADLINE_S) == 7


def test_a_card_is_not_lost_when_the_end_of_its_job_cannot_be_written(make_queue, start_worker, gate, until, caplog):
    gq = make_queue('[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\nbackend = "none"\n')

    @gq.task(name="work", queue="train")
    def work() -> int:
        gate.pass_through()
        return 7

    start_worker(gq)
    job, following = work.enqueue(), work.enqueue()
    gate.wait_reached()
    with unwritable_endings(gq):
        gate.open()
        until(lambda: "no such table" in caplog.text)
    assert job.result(timeout_s=DEADLINE_S) == 7
    assert following.result(timeout_s=DEADLINE_S) == 7


def test_a_job_that_runs_past_its_expiry_is_left_to_run(gq, start_worker, gate):
    @gq.task(name="work")
    def work() -> int:
        gate.pass_through()
        return 1

    start_worker(gq)
    job = work.using(expires_in="2s").enqueue()
    gate.wait_reached()
    with changed(gq) as connection:
        connection.execute("UPDATE jobs SET expires_at = 1")
    ticks = time.process_time()
    other = work.using(delay="300ms").enqueue()
    gate.open()
    assert other.result(timeout_s=DEADLINE_S) == 1
    assert job.result(timeout_s=DEADLINE_S) == 1
    assert time.process_time() - ticks < 10
    assert job.state is State.COMPLETED


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_worker_whose_file_is_gone_says_so_and_ends(gq, tmp_path, replaced, caplog, until):
    @gq.task
    def double(number: int) -> int:
        return 2 * number

    worker = Worker(gq)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert double.enqueue(number=1).result(timeout_s=DEADLINE_S) == 2
        gq.close()
        if replaced:
            GPUQueue(tmp_path / "other.db").store.close()
            os.replace(tmp_path / "other.db", gq.database)
        else:
            gq.database.unlink()
        thread.join(timeout=DEADLINE_S)
        assert not thread.is_alive()
    finally:
        worker.request_stop()
    assert "was deleted or replaced while this worker was using it; start the worker again" in str(ended[0])
    assert gq.database.exists() is replaced, "it makes no other"
