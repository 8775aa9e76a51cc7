"""A job's life outside an attempt: enqueue, due times, expiry, cancel, retry, refusal, demand classes, pruning."""

from __future__ import annotations

import json

import pytest

from gpuqueue.domain.errors import StateError, UnknownJob
from gpuqueue.domain.job import Extras, NewJob, State
from gpuqueue.domain.outcomes import Report
from gpuqueue.domain.units import from_us
from gpuqueue.store.sqlite import claims, jobs, queries
from gpuqueue.store.sqlite.jobs import DEMAND_CLASS_BYTES, NEVER_FITS, SCAN_LIMIT, demand_class
from gpuqueue.store.store import Store
from tests.store.rows import CARD, GB, Rows, assert_counters_are_true, at, job_of, status_of


def test_a_job_is_stored_as_it_was_asked_for(rows: Rows) -> None:
    job_id = rows.enqueue(priority=3, max_attempts=5, timeout_s=1.5, expires_s=60, tags=("a", "b"), arguments='{"x": 1}')
    job = rows.job(job_id)
    assert (job.queue, job.task, job.state, job.priority, job.max_attempts) == ("work", "app.task", State.AVAILABLE, 3, 5)
    assert (job.timeout_s, job.tags, job.arguments) == (1.5, ("a", "b"), {"x": 1})
    assert (job.attempt, job.lease, job.crashes, job.device, job.worker_id) == (0, 0, 0, None, None)
    assert (job.enqueued_at, job.scheduled_at, job.expires_at) == (from_us(at(0)), from_us(at(0)), from_us(at(60)))


def test_many_jobs_are_stored_in_order_or_not_at_all(rows: Rows) -> None:
    new = [NewJob("work", f"t{i}", "{}", at(0)) for i in range(5)]
    ids = rows.store.jobs.enqueue_many(new)
    assert ids == sorted(ids)
    assert [rows.job(job_id).task for job_id in ids] == ["t0", "t1", "t2", "t3", "t4"]
    with pytest.raises(Exception, match=r"NOT NULL"):
        rows.store.jobs.enqueue_many([*new, NewJob(None, "t", "{}", at(0))])  # type: ignore[arg-type]
    assert rows.one("SELECT count(*) FROM jobs") == 5


@pytest.mark.parametrize("size", [10, 999, 1000, 1001, 70_000])
def test_arguments_and_results_of_any_size_come_back_and_large_ones_lie_in_the_side_table(rows: Rows, size: int) -> None:
    text = json.dumps({"x": "é" * (size - 9)}, ensure_ascii=False)
    job_id = rows.enqueue(arguments=text)
    lease = rows.claim_one()
    assert lease.arguments == json.loads(text)
    assert rows.complete(lease, text)
    assert status_of(rows.store, job_id).result == text
    large = len(text) > 1000
    assert rows.one("SELECT count(*) FROM payloads WHERE job_id = ?", job_id) == (2 if large else 0)
    assert (rows.one("SELECT arguments FROM jobs") is None) == large
    assert (rows.one("SELECT result FROM jobs") is None) == large


def test_a_future_job_is_scheduled_and_keeps_its_due_time_when_it_is_promoted(rows: Rows) -> None:
    later = rows.enqueue(due_s=10)
    assert rows.state(later) is State.SCHEDULED
    assert rows.claim(s=9.999999) == []
    assert rows.state(later) is State.SCHEDULED
    now = rows.enqueue(s=11)
    assert [lease.job_id for lease in rows.claim(s=11)] == [later, now]


def test_at_most_a_batch_is_promoted_at_once_and_the_earliest_first(rows: Rows) -> None:
    new = [NewJob("work", "t", "{}", at(0), extras=Extras(at(1000 - i))) for i in range(SCAN_LIMIT + 7)]
    ids = rows.store.jobs.enqueue_many(new)
    rows.queue("work")
    rows.store.jobs.move_due(now_us=at(2000))
    assert rows.one("SELECT count(*) FROM jobs WHERE state = 'scheduled'") == 7
    assert [rows.state(job_id) for job_id in ids[:7]] == [State.SCHEDULED] * 7
    rows.store.jobs.move_due(now_us=at(2000))
    assert rows.one("SELECT count(*) FROM jobs WHERE state = 'scheduled'") == 0


def test_a_waiting_job_expires_and_a_running_one_does_not(rows: Rows) -> None:
    waiting = rows.enqueue(expires_s=10)
    scheduled = rows.enqueue(due_s=20, expires_s=10)
    running = rows.enqueue(expires_s=10, priority=1)
    lease = rows.claim_one()
    assert lease.job_id == running
    rows.store.jobs.move_due(now_us=at(9))
    assert rows.state(waiting) is State.AVAILABLE
    assert rows.claim(s=10) == []
    assert [rows.state(job_id) for job_id in (waiting, scheduled, running)] == [State.DISCARDED, State.DISCARDED, State.RUNNING]
    error = rows.job(waiting).error
    assert error is not None
    assert error.code == "expired"
    assert rows.complete(lease, s=11)
    assert_counters_are_true(rows.store)


def test_what_is_due_next_leaves_out_running_jobs_so_that_no_worker_spins(rows: Rows) -> None:
    def next_due() -> int | None:
        with rows.store.engine.lent() as connection:
            return queries.next_due_us(connection)

    assert next_due() is None
    rows.enqueue(expires_s=10)
    assert next_due() == at(10)
    rows.claim_one()
    assert next_due() is None
    rows.enqueue(due_s=7, expires_s=30)
    assert next_due() == at(7)


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked(rows: Rows) -> None:
    states = {}
    states["available"], states["scheduled"] = rows.enqueue(), rows.enqueue(due_s=9)
    assert rows.store.jobs.cancel(states["available"], now_us=at(1)) is State.AVAILABLE
    assert rows.store.jobs.cancel(states["scheduled"], now_us=at(1)) is State.SCHEDULED
    assert [rows.state(job_id) for job_id in states.values()] == [State.CANCELLED] * 2
    running = rows.enqueue()
    lease = rows.claim_one()
    assert rows.store.jobs.cancel(running, now_us=at(1)) is State.RUNNING
    with rows.store.engine.lent() as connection:
        assert queries.stop_requests(connection, "w") == [(running, lease.lease, True)]
        assert queries.stop_requests(connection, "other") == []
    assert rows.end(lease, State.CANCELLED)
    assert rows.store.jobs.cancel(running, now_us=at(2)) is State.CANCELLED
    with pytest.raises(UnknownJob):
        rows.store.jobs.cancel(999, now_us=at(1))
    assert_counters_are_true(rows.store)


def test_a_finish_wins_over_a_cancel_request(rows: Rows) -> None:
    completed, discarded = rows.enqueue(), rows.enqueue()
    first, second = rows.claim()
    for job_id in (completed, discarded):
        rows.store.jobs.cancel(job_id, now_us=at(0.5))
    assert rows.complete(first)
    assert rows.end(second)
    assert (rows.state(completed), rows.state(discarded)) == (State.COMPLETED, State.DISCARDED)
    assert_counters_are_true(rows.store)


@pytest.mark.parametrize("outcome", ["retried", "snoozed", "released"])
def test_what_would_go_on_after_a_cancel_request_is_cancelled(rows: Rows, outcome: str) -> None:
    job_id = rows.enqueue()
    lease = rows.claim_one()
    rows.store.jobs.cancel(job_id, now_us=at(0.5))
    assert rows.postpone(lease, outcome)
    assert rows.state(job_id) is State.CANCELLED
    assert_counters_are_true(rows.store)
    rows.store.jobs.retry(job_id, now_us=at(2))
    assert rows.complete(rows.claim_one(s=3), s=4)
    assert rows.state(job_id) is State.COMPLETED


def test_a_finished_or_postponed_job_is_retried_with_all_its_attempts(rows: Rows) -> None:
    job_id = rows.enqueue(max_attempts=2, expires_s=5)
    assert rows.end(rows.claim_one())
    rows.store.jobs.retry(job_id, now_us=at(10))
    job = rows.job(job_id)
    assert (job.state, job.attempt, job.crashes, job.expires_at, job.finished_at) == (State.AVAILABLE, 0, 0, None, None)
    assert job.scheduled_at == from_us(at(10))
    assert_counters_are_true(rows.store)
    lease = rows.claim_one(s=11)
    assert (lease.attempt, lease.lease) == (1, 2)
    with pytest.raises(StateError, match="is running"):
        rows.store.jobs.retry(job_id, now_us=at(11))
    assert rows.postpone(lease, due_s=100)
    rows.store.jobs.retry(job_id, now_us=at(12))
    assert rows.complete(rows.claim_one(s=12), s=13)
    with pytest.raises(StateError, match="is completed"):
        rows.store.jobs.retry(job_id, now_us=at(14))
    with pytest.raises(UnknownJob):
        rows.store.jobs.retry(999, now_us=at(14))
    assert_counters_are_true(rows.store)


def test_a_queue_whose_service_is_away_refuses_what_waits_and_leaves_the_rest(rows: Rows) -> None:
    running = rows.enqueue("ai")
    rows.claim_one("ai")
    waiting, later, other = rows.enqueue("ai"), rows.enqueue("ai", due_s=99), rows.enqueue("mail")
    assert rows.store.jobs.refuse_waiting("ai", message="away", now_us=at(1)) == [waiting]
    error = rows.job(waiting).error
    assert error is not None
    assert (error.code, error.message) == ("unavailable", "away")
    assert [rows.state(job_id) for job_id in (running, later, other)] == [State.RUNNING, State.SCHEDULED, State.AVAILABLE]
    assert rows.store.jobs.refuse_one(later, message="away", now_us=at(1))
    assert not rows.store.jobs.refuse_one(later, message="away", now_us=at(2))
    assert not rows.store.jobs.refuse_one(running, message="away", now_us=at(2))
    assert not rows.store.jobs.refuse_one(999, message="away", now_us=at(2))
    assert_counters_are_true(rows.store)


def test_the_return_of_a_backend_wakes_only_what_waited_for_it(rows: Rows) -> None:
    first, second, third = (rows.enqueue() for _ in range(3))
    one, two, three = rows.claim()
    rows.postpone(one, "snoozed", waiting_for="ollama", due_s=300)
    rows.postpone(two, "snoozed", waiting_for="other", due_s=300)
    rows.postpone(three, due_s=300)
    assert rows.store.engine.writer.run(lambda connection: jobs.promote_waiting_for(connection, "ollama")) == 1
    assert [rows.state(job_id) for job_id in (first, second, third)] == [State.AVAILABLE, State.RETRYABLE, State.RETRYABLE]
    assert rows.job(first).waiting_for is None
    assert rows.claim_one(s=5).attempt == 1


def test_a_job_whose_backend_came_back_while_it_ran_waits_for_nothing(rows: Rows) -> None:
    rows.queue("work")
    first, second = rows.enqueue(s=1), rows.enqueue(s=1)
    lease = rows.claim_one(s=5)
    options = {"error": "refused", "probe_every_s": 1, "longest_s": 1}
    rows.store.backends.lost("ollama", now_us=at(6), **options)
    assert rows.store.backends.answered("ollama", worked=False, now_us=at(7))
    other = rows.claim_one(s=8)
    rows.postpone(lease, "snoozed", waiting_for="ollama", due_s=300, s=9)
    rows.postpone(other, "snoozed", waiting_for="ollama", due_s=300, s=9)
    job = rows.job(first)
    assert (job.state, job.scheduled_at, job.waiting_for) == (State.AVAILABLE, from_us(at(1)), None)
    assert (rows.state(second), rows.job(second).waiting_for) == (State.RETRYABLE, "ollama"), "it was back before this began"


def test_a_job_never_runs_twice_by_being_due_and_cancelled(rows: Rows) -> None:
    job_id = rows.enqueue(due_s=1)
    rows.store.jobs.cancel(job_id, now_us=at(0))
    assert rows.claim(s=5) == []


def test_demand_classes_are_64_mib_wide_and_what_no_device_takes_has_its_own(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    assert (demand_class(0), demand_class(DEMAND_CLASS_BYTES - 1), demand_class(DEMAND_CLASS_BYTES)) == (1, 1, 2)
    small, large, unknown = rows.enqueue_sized("ai", 0.5, "m"), rows.enqueue_sized("ai", 5.1, "m"), rows.enqueue("ai")
    assert rows.one("SELECT demand_class FROM jobs WHERE id = ?", small) == demand_class(GB // 2)
    assert rows.one("SELECT demand_class FROM jobs WHERE id = ?", large) == NEVER_FITS
    with rows.store.engine.lent() as connection:
        assert list(claims.classes(connection, "ai", largest_bytes=CARD.budget_bytes)) == [("", 0), ("m", demand_class(GB // 2))]
        assert [job.id for job in claims.unsized(connection, "ai", limit=10)] == [unknown]


def test_only_the_first_of_each_class_is_a_candidate_and_only_where_there_is_room(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    first, _second = rows.enqueue_sized("ai", 4, "big"), rows.enqueue_sized("ai", 4, "big")
    embed = rows.enqueue_sized("ai", 0.5, "embed")
    urgent = rows.enqueue_sized("ai", 4, "big", priority=9)

    def candidates(room: int) -> set[int]:
        with rows.store.engine.lent() as connection:
            return {job.id for job in claims.candidates(connection, "ai", room_bytes=room)}

    assert candidates(5 * GB) == {urgent, embed}
    rows.placed(urgent)
    assert candidates(5 * GB) == {first, embed}
    assert candidates(GB) == {embed}
    assert candidates(0) == set()


def test_changed_settings_put_every_unfinished_job_back_to_unsized(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    too_large, running = rows.enqueue_sized("ai", 9, "m"), rows.enqueue_sized("ai", 1, "m")
    discarded = rows.enqueue_sized("ai", 9, "m")
    rows.store.jobs.cancel(discarded, now_us=at(0))
    lease = rows.placed(running)
    rows.store.workers.accept_configuration(digest="new", settings={"queues": {}}, force=True, now_us=at(1))
    assert (rows.job(too_large).model, rows.job(too_large).demand_bytes) == ("", 0)
    assert rows.job(running).model == "m", "a reservation keeps the model that its clean-up must unload"
    rows.postpone(lease, due_s=1)
    assert rows.store.attempts.release_device(running, lease.lease)
    assert rows.job(running).model == ""
    rows.store.jobs.retry(discarded, now_us=at(2))
    with rows.store.engine.lent() as connection:
        assert {job.id for job in claims.unsized(connection, "ai", limit=9)} == {too_large, running, discarded}


def test_a_job_of_a_queue_that_is_no_longer_a_gpu_queue_is_still_claimed(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 1, "m")
    rows.placed(job_id)
    rows.store.workers.accept_configuration(digest="new", settings={"queues": {"ai": {}}}, force=True, now_us=at(1))
    (orphan,) = rows.rescue(s=2)
    assert orphan.model == "m"
    assert rows.store.attempts.release_device(job_id, orphan.lease)
    rows.queue("ai")
    rows.register("w")
    assert rows.claim_one("ai", s=3).job_id == job_id


def test_pruning_deletes_old_finished_jobs_with_all_that_belongs_to_them(rows: Rows) -> None:
    large = json.dumps("x" * 2000)
    old = rows.enqueue(arguments=json.dumps({"x": "y" * 2000}), max_attempts=2)
    lease = rows.claim_one()
    rows.postpone(lease, due_s=1)
    lease = rows.claim_one(s=2)
    rows.store.attempts.report([Report(old, lease.lease, "text")])
    rows.complete(lease, large, s=3)
    young, failed, waiting = rows.enqueue(), rows.enqueue(), rows.enqueue()
    rows.complete(rows.claim_one(s=3), s=100)
    rows.end(rows.claim_one(s=3), s=4)
    rows.enqueue()
    assert rows.store.jobs.prune(State.COMPLETED, before_us=at(50), limit=1000) == 1
    with pytest.raises(UnknownJob):
        rows.job(old)
    for table in ("payloads", "chunks", "attempts"):
        assert rows.one(f"SELECT count(*) FROM {table} WHERE job_id = ?", old) == 0
    assert [rows.state(job_id) for job_id in (young, failed, waiting)] == [State.COMPLETED, State.DISCARDED, State.AVAILABLE]
    assert_counters_are_true(rows.store)


def test_pruning_stops_at_its_limit_and_keeps_the_newest_id_and_unverified_reservations(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    reserved = rows.enqueue_sized("ai", 1)
    lease = rows.placed(reserved)
    rows.complete(lease)
    for _ in range(5):
        rows.complete(rows.claim_one(rows.job(rows.enqueue()).queue), s=2)
    newest = rows.one("SELECT max(id) FROM jobs")
    assert rows.store.jobs.prune(State.COMPLETED, before_us=at(50), limit=2) == 2
    assert rows.store.jobs.prune(State.COMPLETED, before_us=at(50), limit=1000) == 2
    assert rows.job(newest)
    assert rows.job(reserved)
    assert rows.enqueue() == newest + 1, "an id is never given again"
    assert rows.store.attempts.release_device(reserved, lease.lease)
    assert rows.store.jobs.prune(State.COMPLETED, before_us=at(50), limit=1000) == 2
    assert_counters_are_true(rows.store)


def test_jobs_are_listed_newest_first_by_pages(rows: Rows) -> None:
    ids = [rows.enqueue() for _ in range(5)] + [rows.enqueue("mail")]
    rows.complete(rows.claim_one())

    def listed(**wanted: object) -> list[int]:
        asked = {"queue": None, "state": None, "limit": 3, "after": None, **wanted}
        with rows.store.engine.lent() as connection:
            return [job.id for job in queries.list_jobs(connection, **asked)]  # type: ignore[arg-type]

    assert listed() == ids[:2:-1]
    assert listed(after=ids[3]) == ids[2::-1]
    assert listed(before=ids[0]) == ids[3:0:-1] and listed(before=ids[5]) == []
    assert listed(queue="mail") == ids[5:]
    assert listed(state=State.COMPLETED) == ids[:1]


def test_counts_name_every_state_and_leave_out_zeros(rows: Rows) -> None:
    for _ in range(4):
        rows.enqueue()
    rows.enqueue(due_s=50)
    rows.queue("idle")
    completed, postponed, _running = rows.claim("work", limit=3)
    rows.complete(completed)
    rows.postpone(postponed, due_s=40)
    with rows.store.engine.lent() as connection:
        assert queries.counts(connection) == {
            "idle": {},
            "work": {"available": 1, "scheduled": 1, "retryable": 1, "running": 1, "completed": 1},
        }


def test_the_jobs_ahead_are_those_that_the_claim_takes_first(rows: Rows) -> None:
    urgent, first, second = rows.enqueue(priority=2), rows.enqueue(), rows.enqueue(s=1)
    rows.enqueue("mail", priority=9)
    with rows.store.engine.lent() as connection:
        ahead = {
            job_id: [
                work.count
                for work in queries.work_ahead(connection, "work", queries.get_job(connection, job_id), largest_bytes=0)
            ]
            for job_id in (urgent, first, second)
        }
        every = queries.work_ahead(connection, "work", None, largest_bytes=0)
        last = queries.last_waiting(connection, "work", largest_bytes=0)
    assert ahead == {urgent: [], first: [1], second: [2]}
    assert [work.count for work in every] == [3]
    assert last is not None and last.id == second


def test_a_job_that_never_existed_is_unknown(store: Store) -> None:
    with pytest.raises(UnknownJob, match="unknown job 7"):
        job_of(store, 7)
    with pytest.raises(UnknownJob, match="unknown job 7"):
        status_of(store, 7)


def test_a_job_that_fits_no_device_comes_before_nobody(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    rows.enqueue_sized("ai", 9, priority=1)
    rows.enqueue_sized("ai", 1)
    rows.enqueue("ai")
    last = rows.enqueue_sized("ai", 1)
    with rows.store.engine.lent() as connection:
        ahead = queries.work_ahead(connection, "ai", rows.job(last), largest_bytes=5 * 10**9)
    assert sum(work.count for work in ahead) == 2


def test_where_jobs_need_several_models_those_behind_are_counted_too(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    jobs = [rows.enqueue_sized("ai", 1, model=model) for model in ("gemma", "qwen", "gemma", "gemma", "llama")]
    with rows.store.engine.lent() as connection:
        found = queries.work_ahead(connection, "ai", rows.job(jobs[2]), largest_bytes=5 * 10**9)
    assert {work.model: (work.count, work.behind) for work in found} == {"gemma": (1, 1), "qwen": (1, 0), "llama": (0, 1)}
