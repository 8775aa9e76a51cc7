"""Changing many jobs: which ones, in small transactions, beside workers that go on meanwhile."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

from gpuqueue.domain.job import Cancellation, Extras, NewJob, State
from gpuqueue.store.store import AT_ONCE, Store
from gpuqueue.store.wakeups import Listener
from tests.store.rows import NOW_US, Rows, assert_counters_are_true, at


def enqueue_many(rows: Rows, count: int, queue: str = "work", due_us: int = NOW_US) -> list[int]:
    rows.queue(queue)
    return rows.store.jobs.enqueue_many([NewJob(queue, "app.task", "{}", NOW_US, extras=Extras(due_us)) for _ in range(count)])


def updates_per_transaction(store: Store, work: Callable[[], object]) -> list[int]:
    """How many jobs each write transaction of the work changes."""
    store.queues.ensure("work")
    assert store.engine.writer.cursor is not None
    connection = store.engine.writer.cursor.connection
    changed: list[int] = []

    def note(statement: str) -> None:
        if statement.startswith("BEGIN"):
            changed.append(0)
        elif statement.startswith(("UPDATE jobs", "DELETE FROM jobs")):
            changed[-1] += 1

    connection.set_trace_callback(note)
    work()
    connection.set_trace_callback(None)
    return changed


def test_all_discarded_jobs_are_retried_with_their_attempts_counted_anew(store: Store, rows: Rows) -> None:
    ids = [rows.enqueue(queue, max_attempts=3) for queue in ("work", "work", "other", "work")]
    leases = rows.claim(s=1)
    for lease in leases[:3]:
        rows.end(lease)
    rows.complete(leases[3])
    assert store.jobs.retry_failed(None, now_us=at(9)) == 3
    for job_id in ids[:3]:
        job = rows.job(job_id)
        assert (job.state, job.attempt, job.error, job.finished_at) == (State.AVAILABLE, 0, None, None)
    assert rows.state(ids[3]) == State.COMPLETED
    assert_counters_are_true(store)
    assert store.jobs.retry_failed(None, now_us=at(9)) == 0


def test_the_discarded_jobs_of_one_queue_are_retried_and_cancelled_ones_of_none(store: Store, rows: Rows) -> None:
    mine, others, cancelled = rows.enqueue("work"), rows.enqueue("other"), rows.enqueue("work")
    store.jobs.cancel(cancelled, now_us=at(1))
    for lease in rows.claim(s=1):
        rows.end(lease)
    assert store.jobs.retry_failed("work", now_us=at(9)) == 1
    assert [rows.state(job_id) for job_id in (mine, others, cancelled)] == ["available", "discarded", "cancelled"]


def test_a_reservation_that_is_still_cleaned_up_outlives_the_retry(store: Store, rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 1, "m")
    lease = rows.placed(job_id)
    rows.end(lease)
    assert store.jobs.retry_failed("ai", now_us=at(9)) == 1
    job = rows.job(job_id)
    assert (job.state, job.device, job.model) == (State.AVAILABLE, "gpu0", "m")
    assert store.attempts.release_device(job_id, lease.lease)


def test_all_of_a_queue_is_cancelled_whatever_it_waits_for(store: Store, rows: Rows) -> None:
    running, postponed = rows.enqueue(max_attempts=3), rows.enqueue(max_attempts=3)
    for lease in rows.claim(s=1):
        if lease.job_id == postponed:
            rows.postpone(lease)
    available, scheduled, other = rows.enqueue(), rows.enqueue(due_s=100), rows.enqueue("other")
    assert store.jobs.cancel_all("work", now_us=at(5)) == Cancellation(cancelled_count=3, asked_to_stop_count=1)
    assert {rows.state(job_id) for job_id in (postponed, available, scheduled)} == {State.CANCELLED}
    assert rows.job(running).cancel_requested
    assert rows.state(other) == State.AVAILABLE
    assert_counters_are_true(store)
    assert store.jobs.cancel_all("work", now_us=at(6)) == Cancellation(0, 1)


def test_who_waits_for_a_cancelled_job_is_woken(store: Store, rows: Rows) -> None:
    job_id = rows.enqueue()
    with Listener.for_job(store.runtime_dir, job_id) as listener:
        store.jobs.cancel_all("work", now_us=at(1))
        assert listener.wait(0)


def meanwhile(store: Store, job_id: int, column: str, statement: str) -> None:
    """Let another process seem to run the statement right after this column of the job was changed."""
    trigger = f"CREATE TRIGGER meanwhile AFTER UPDATE OF {column} ON jobs WHEN NEW.id = {job_id} BEGIN {statement}; END"
    store.engine.writer.run(lambda connection: connection.execute(trigger))


def test_a_worker_that_claims_meanwhile_is_asked_to_stop(store: Store, rows: Rows) -> None:
    ids = enqueue_many(rows, AT_ONCE + 10)  # the last ones are cancelled in a second transaction
    claim = "UPDATE jobs SET state = 'running', worker_id = 'w', started_at = 1, attempt = 1, lease = 1"
    meanwhile(store, ids[0], "state", f"{claim} WHERE id = {ids[-1]}")
    assert store.jobs.cancel_all("work", now_us=at(1)) == Cancellation(AT_ONCE + 9, 1)
    assert rows.job(ids[-1]).cancel_requested


def test_a_job_that_is_given_back_meanwhile_is_cancelled_too(store: Store, rows: Rows) -> None:
    first, second = rows.enqueue(max_attempts=9), rows.enqueue(max_attempts=9)
    rows.claim(s=1)
    meanwhile(store, first, "cancel_requested", f"UPDATE jobs SET state = 'retryable' WHERE id = {second}")
    assert store.jobs.cancel_all("work", now_us=at(2)) == Cancellation(1, 1)
    assert (rows.state(first), rows.state(second)) == (State.RUNNING, State.CANCELLED)


def test_a_job_that_finishes_meanwhile_keeps_its_result(store: Store, rows: Rows) -> None:
    first, second = rows.enqueue(), rows.enqueue()
    rows.claim(s=1)
    finish = f"UPDATE jobs SET state = 'completed', finished_at = 1, result = '1' WHERE id = {second}"
    meanwhile(store, first, "cancel_requested", finish)
    assert store.jobs.cancel_all("work", now_us=at(2)) == Cancellation(0, 1)
    assert rows.state(second) == State.COMPLETED


def test_a_failed_job_that_a_person_retries_meanwhile_is_left_to_its_new_attempt(store: Store, rows: Rows) -> None:
    first, second = rows.enqueue(), rows.enqueue()
    for lease in rows.claim(s=1):
        rows.end(lease)
    retried = f"UPDATE jobs SET state = 'running', finished_at = NULL, attempt = 1, lease = 2 WHERE id = {second}"
    meanwhile(store, first, "state", retried)
    assert store.jobs.retry_failed(None, now_us=at(9)) == 1
    assert (rows.state(first), rows.state(second), rows.job(second).attempt) == (State.AVAILABLE, State.RUNNING, 1)


def test_jobs_that_are_stored_meanwhile_stay(store: Store, rows: Rows) -> None:
    (job_id,) = enqueue_many(rows, 1)
    insert = "INSERT INTO jobs (queue, task, state, enqueued_at, scheduled_at) VALUES ('work', 't', 'available', 0, 0)"
    meanwhile(store, job_id, "state", insert)
    assert store.jobs.cancel_all("work", now_us=at(1)) == Cancellation(1, 0)
    assert rows.one("SELECT count(*) FROM jobs WHERE state = 'available'") == 1


def test_no_transaction_changes_more_than_some_hundred_jobs(store: Store, rows: Rows) -> None:
    count = 2 * AT_ONCE + 7
    slices = [AT_ONCE, AT_ONCE, 7]
    enqueue_many(rows, count)
    assert updates_per_transaction(store, lambda: store.jobs.cancel_all("work", now_us=at(1))) == slices
    store.engine.writer.run(lambda connection: connection.execute("UPDATE jobs SET state = 'discarded'"))
    store.engine.writer.run(lambda connection: connection.execute("UPDATE counters SET state = 'discarded'"))
    assert updates_per_transaction(store, lambda: store.jobs.retry_failed(None, now_us=at(2))) == slices
    store.jobs.cancel_all("work", now_us=at(3))
    # The newest job stays, so that its id is not given again.
    assert updates_per_transaction(store, lambda: store.jobs.prune_all(State.CANCELLED, before_us=at(9))) == [*slices[:2], 6]
    assert rows.one("SELECT count(*) FROM jobs") == 1
    assert_counters_are_true(store)


def test_beside_workers_that_finish_and_claim_every_job_ends_once(store: Store, rows: Rows) -> None:
    enqueue_many(rows, 3 * AT_ONCE)
    stop = threading.Event()
    completed: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                for lease in rows.claim("work", limit=20, s=1):
                    if rows.complete(lease):
                        completed.append(lease.job_id)
        except (AssertionError, sqlite3.Error) as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        found = store.jobs.cancel_all("work", now_us=at(2))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert failures == []
    assert rows.one("SELECT count(*) FROM jobs WHERE finished_at IS NULL") == 0
    assert found.cancelled_count + len(completed) == 3 * AT_ONCE
    assert_counters_are_true(store)
