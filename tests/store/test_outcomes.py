"""How attempts end: fencing by the lease number, attempts given back, rescue of what dead workers held."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpuqueue.domain.job import State
from gpuqueue.domain.outcomes import Completed, Ended, Outcome, Postponed, Report
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.domain.view import Pause
from gpuqueue.store.sqlite import queries
from gpuqueue.store.sqlite.outcomes import abandoned_workers, reservations
from tests.store.rows import BOOM, CARD, GB, Rows, assert_counters_are_true, at, status_of


def test_a_completed_job_has_its_result_and_no_error_left(rows: Rows) -> None:
    job_id = rows.enqueue(max_attempts=2)
    rows.postpone(rows.claim_one(), due_s=2, error=BOOM)
    assert rows.job(job_id).error == BOOM
    assert rows.complete(rows.claim_one(s=2), '"done"', s=3)
    ending = status_of(rows.store, job_id)
    assert (ending.state, ending.result, ending.error) == (State.COMPLETED, '"done"', None)


def test_a_late_outcome_changes_nothing_and_says_so(rows: Rows) -> None:
    job_id = rows.enqueue()
    old = rows.claim_one()
    rows.rescue()
    current = rows.claim_one(s=3, worker="rescuer")
    with rows.store.engine.lent() as connection:
        before = connection.execute("SELECT * FROM jobs").fetchall()
    for late in (Completed(old, "1"), Ended(old, State.DISCARDED, BOOM), Postponed(old, "retried", at(9), BOOM)):
        assert rows.store.attempts.finish([late], now_us=at(4)) == [old]
    rows.store.attempts.report([Report(job_id, old.lease, "late")])
    assert not rows.store.attempts.release_device(job_id, old.lease)
    with rows.store.engine.lent() as connection:
        assert connection.execute("SELECT * FROM jobs").fetchall() == before
        assert queries.chunks_after(connection, job_id, 0) == []
    assert rows.complete(current, s=5)
    assert not rows.complete(current, s=6), "a second finish is late"
    assert_counters_are_true(rows.store)


def test_one_late_outcome_among_many_is_the_only_one_named(rows: Rows) -> None:
    for _ in range(6):
        rows.enqueue()
    leases = rows.claim()
    large = '"' + "x" * 3000 + '"'
    rows.store.attempts.finish([Completed(leases[1], "1")], now_us=at(1))
    outcomes: list[Outcome] = [
        Completed(leases[0], large),
        Completed(leases[1], large),
        Completed(leases[2], "3"),
        Ended(leases[1], State.DISCARDED, BOOM),
        Ended(leases[3], State.DISCARDED, BOOM),
        Postponed(leases[1], "retried", at(9)),
        Postponed(leases[4], "retried", at(9)),
    ]
    late = rows.store.attempts.finish(outcomes, now_us=at(2))
    assert late == [leases[1]] * 3
    assert status_of(rows.store, leases[0].job_id).result == large
    assert status_of(rows.store, leases[1].job_id).result == "1"
    assert rows.one("SELECT count(*) FROM payloads") == 1
    assert [rows.state(lease.job_id) for lease in leases[2:]] == [
        State.COMPLETED, State.DISCARDED, State.RETRYABLE, State.RUNNING,
    ]  # fmt: skip
    assert_counters_are_true(rows.store)


@pytest.mark.parametrize(
    ("outcome", "attempt", "state"),
    [
        ("retried", 1, State.RETRYABLE),
        ("snoozed", 0, State.RETRYABLE),
        ("released", 0, State.AVAILABLE),
        ("preempted", 0, State.AVAILABLE),
    ],
)
def test_an_attempt_is_spent_only_when_it_is_retried(rows: Rows, outcome: str, attempt: int, state: State) -> None:
    job_id = rows.enqueue(max_attempts=2)
    lease = rows.claim_one()
    assert rows.postpone(lease, outcome, due_s=30, error=BOOM)
    job = rows.job(job_id)
    assert (job.state, job.attempt, job.lease) == (state, attempt, lease.lease)
    with rows.store.engine.lent() as connection:
        (line,) = queries.timeline(connection, job_id)
    assert (line["attempt"], line["outcome"], line["worker"], line["error"]) == (1, outcome, "w", BOOM)
    assert rows.claim_one(s=30).attempt == attempt + 1


def test_what_is_postponed_to_now_is_available_at_once(rows: Rows) -> None:
    job_id = rows.enqueue()
    assert rows.postpone(rows.claim_one(), "released", due_s=1, s=1)
    assert rows.state(job_id) is State.AVAILABLE


def test_the_timeline_keeps_every_interrupted_attempt_in_order(rows: Rows) -> None:
    job_id = rows.enqueue(max_attempts=9)
    for number, outcome in enumerate(("retried", "snoozed", "released", "retried")):
        rows.postpone(rows.claim_one(s=number * 10), outcome, due_s=number * 10 + 9, s=number * 10 + 1)
    rows.end(rows.claim_one(s=90), s=91)
    with rows.store.engine.lent() as connection:
        lines = queries.timeline(connection, job_id)
    assert [line["outcome"] for line in lines] == ["retried", "snoozed", "released", "retried", "discarded"]
    assert [line["attempt"] for line in lines] == [1, 2, 2, 2, 3]


def test_chunks_keep_their_order_and_carry_their_lease(rows: Rows) -> None:
    job_id, other = rows.enqueue(), rows.enqueue()
    first, second = rows.claim()
    rows.store.attempts.report(
        [Report(job_id, first.lease, "a"), Report(other, second.lease, "x"), Report(job_id, first.lease, "b")]
    )
    rows.store.attempts.report([Report(job_id, first.lease, "c"), Report(job_id, first.lease + 1, "not mine")])
    rows.postpone(first, "snoozed", due_s=5)
    again = rows.claim_one(s=5)
    rows.store.attempts.report([Report(job_id, first.lease, "late"), Report(job_id, again.lease, "d")])
    with rows.store.engine.lent() as connection:
        assert queries.chunks_after(connection, job_id, 0) == [(1, 1, "a"), (2, 1, "b"), (3, 1, "c"), (4, 2, "d")]
        assert queries.chunks_after(connection, job_id, 2) == [(3, 1, "c"), (4, 2, "d")]
        assert queries.chunks_after(connection, other, 0) == [(1, 1, "x")]


@pytest.mark.parametrize("continues", [False, True])
@pytest.mark.parametrize("wrote", [False, True])
def test_what_a_preempted_attempt_throws_away_is_noted_for_an_hour(rows: Rows, continues: bool, wrote: bool) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 1)

    def preempt(s: float) -> None:
        lease = rows.placed(job_id, s=s, preemptible=True, continues=continues)
        if wrote:
            rows.store.attempts.report([Report(job_id, lease.lease, "text")])
        rows.postpone(lease, "preempted", s=s + 10)
        rows.store.attempts.release_device(job_id, lease.lease)

    def thrown() -> list[tuple[float, float]]:
        with rows.store.engine.lent() as connection:
            found = queries.device_sightings(connection)
        entries = found["gpu0"].thrown if "gpu0" in found else ()
        return [((to_us(moment) - at(0)) / 1e6, seconds) for moment, seconds in entries]

    preempt(0)
    preempt(30)
    assert thrown() == ([] if continues and wrote else [(10, 10.0), (40, 10.0)])
    preempt(3600)
    assert thrown() == ([] if continues and wrote else [(40, 10.0), (3610, 10.0)])


def test_an_attempt_has_its_first_output_once(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 1)
    lease = rows.placed(job_id)

    def first_output() -> object:
        with rows.store.engine.lent() as connection:
            (item,) = reservations(connection)
        return item.first_output_at

    assert first_output() is None
    for number, moment in ((0, None), (3, at(5)), (9, at(8))):
        rows.store.attempts.report([Report(job_id, lease.lease, output_tokens=number, first_output_us=moment)])
    assert first_output() == from_us(at(5))
    rows.postpone(lease, "preempted", s=9)
    rows.store.attempts.release_device(job_id, lease.lease)
    rows.placed(job_id, s=10)
    assert first_output() is None


def test_rescued_jobs_are_available_again_unspent_under_a_new_lease(rows: Rows) -> None:
    job_id = rows.enqueue(max_attempts=3)
    lease = rows.claim_one()
    assert rows.rescue(executing=[]) == []
    job = rows.job(job_id)
    assert (job.state, job.attempt, job.lease, job.crashes, job.error) == (State.AVAILABLE, 0, lease.lease + 1, 0, None)
    assert rows.one("SELECT count(*) FROM workers") == 0


def test_jobs_that_a_dead_worker_was_executing_are_suspects_and_not_charged(rows: Rows) -> None:
    executing, prefetched = rows.enqueue(), rows.enqueue()
    rows.claim()
    rows.rescue(executing=[executing])
    assert (rows.job(executing).crashes, rows.job(prefetched).crashes) == (0, 0)
    error = rows.job(executing).error
    assert error is not None
    assert error.code == "crashed"
    assert rows.suspects() == [executing]
    rows.register("w")
    assert [lease.job_id for lease in rows.claim(s=3)] == [prefetched], "a suspect is claimed only by name"
    rows.rescue(executing=None, s=4)
    assert rows.suspects() == [executing, prefetched], "unknown: it may have been executing"


def test_at_most_two_suspects_run_at_once_and_first_of_all_jobs(rows: Rows) -> None:
    jobs = [rows.enqueue() for _ in range(5)]
    rows.claim()
    rows.rescue(executing=jobs[:4])
    rows.register("w")
    suspects = rows.suspects()
    assert suspects == jobs[:4]
    first = rows.claim(s=3, suspects=suspects)
    assert [(lease.job_id, lease.crashes) for lease in first] == [(jobs[0], 0), (jobs[1], 0), (jobs[4], None)]
    rows.register("other")
    assert rows.claim(s=4, worker="other", suspects=suspects) == []
    rows.complete(first[0], s=5)
    assert [lease.job_id for lease in rows.claim(s=6, worker="other", suspects=suspects)] == [jobs[2]]


def test_a_suspect_keeps_to_its_queues_limits_and_to_the_room_of_its_worker(rows: Rows) -> None:
    rows.queue("narrow", concurrency=1)
    jobs = [rows.enqueue("narrow"), rows.enqueue("work"), rows.enqueue("work")]
    running = rows.enqueue("narrow")
    rows.queues["narrow"] = replace(rows.queues["narrow"], concurrency=9)
    rows.claim()
    rows.rescue(executing=jobs)
    rows.queues["narrow"] = replace(rows.queues["narrow"], concurrency=1)
    rows.register("w")
    assert [lease.job_id for lease in rows.claim("narrow", s=3)] == [running]
    taken = rows.claim(limit=1, s=4, suspects=[*rows.suspects("narrow"), *rows.suspects("work")])
    assert [lease.job_id for lease in taken] == [jobs[1]]
    rows.store.queues.pause("work", Pause("me", "", from_us(at(4)), None))
    assert rows.claim(s=5, suspects=rows.suspects("work")) == []


@pytest.mark.parametrize(("outcome", "stays"), [("released", True), ("preempted", True), ("retried", False), ("snoozed", False)])
def test_a_suspect_is_cleared_by_an_attempt_that_ends_by_itself(rows: Rows, outcome: str, stays: bool) -> None:
    job_id = rows.enqueue(max_attempts=9)
    rows.claim_one()
    rows.rescue(executing=[job_id])
    rows.register("w")
    (lease,) = rows.claim(suspects=[job_id], s=3)
    rows.postpone(lease, outcome, due_s=4, s=4)
    assert (rows.suspects() == [job_id]) is stays
    assert [found.job_id for found in rows.claim(s=5)] == ([] if stays else [job_id])


@pytest.mark.parametrize("executing", [True, None])
def test_a_suspect_alone_in_its_worker_is_charged_with_its_death(rows: Rows, executing: bool | None) -> None:
    job_id = rows.enqueue()
    rows.claim_one()
    rows.rescue(executing=[job_id])
    for number in range(1, 4):
        rows.register(f"w{number}")
        (lease,) = rows.claim(suspects=[job_id], s=3, worker=f"w{number}")
        assert lease.crashes == number - 1
        rows.rescue(f"w{number}", executing=[job_id] if executing else None, s=4)
        assert rows.job(job_id).crashes == number
    error = rows.job(job_id).error
    assert error is not None
    assert (rows.state(job_id), error.code) == (State.DISCARDED, "crashed")
    assert error.message == "the job's process died 3 times; the last time: worker w3 died (a test says so)"


def test_a_suspect_in_a_process_of_its_own_is_not_charged_with_its_workers_death(rows: Rows) -> None:
    job_id, other = rows.enqueue(), rows.enqueue()
    rows.claim()
    rows.rescue(executing=[job_id])
    for executing in ([], [other], None):
        rows.register("w")
        rows.claim(suspects=rows.suspects(), s=3)
        rows.rescue(executing=executing, s=4)
    assert (rows.job(job_id).crashes, rows.state(job_id)) == (0, State.AVAILABLE)
    assert job_id in rows.suspects()


def test_a_job_on_a_device_is_suspected_and_keeps_its_order(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 2, "m", max_attempts=9)
    rows.enqueue_sized("ai", 2, "m")
    assert rows.placed(job_id).crashes is None
    for crashes in (0, 1):
        (orphan,) = rows.rescue(executing=[job_id])
        rows.store.attempts.release_device(job_id, orphan.lease)
        rows.register("w")
        with rows.store.reading() as reads:
            assert [job.id for job in reads.candidates("ai", room_bytes=8 * GB)] == [job_id]
        lease = rows.placed(job_id)
        assert (lease.crashes, rows.job(job_id).crashes) == (crashes, crashes)
    rows.postpone(lease, "released", due_s=0)
    rows.store.attempts.release_device(job_id, lease.lease)
    lease = rows.placed(job_id)
    assert lease.crashes == 1
    rows.postpone(lease, "retried", due_s=0)
    rows.store.attempts.release_device(job_id, lease.lease)
    assert rows.placed(job_id, s=3).crashes is None, "it is cleared"


def test_a_job_whose_process_dies_again_and_again_is_discarded_and_can_be_retried(rows: Rows) -> None:
    job_id = rows.enqueue()
    rows.claim_one()
    rows.rescue(executing=[job_id])
    rows.register("w")
    for number in range(3):
        assert rows.state(job_id) is State.AVAILABLE
        (lease,) = rows.claim(suspects=[job_id], s=number + 3)
        assert rows.crash(lease, last=number == 2, s=number + 3)
        assert not rows.crash(lease), "a late end changes nothing"
    job = rows.job(job_id)
    assert (job.state, job.crashes, job.attempt) == (State.DISCARDED, 3, 0)
    assert job.error is not None
    assert_counters_are_true(rows.store)
    rows.store.jobs.retry(job_id, now_us=at(9))
    assert rows.job(job_id).crashes == 0
    with rows.store.engine.lent() as connection:
        assert [line["outcome"] for line in queries.timeline(connection, job_id)] == ["crashed"] * 4
    assert rows.claim(s=10) == [], "it would cost the worker's other jobs an attempt again"
    assert [lease.job_id for lease in rows.claim(suspects=[job_id], s=10)] == [job_id]


def test_a_cancelled_job_of_a_dead_worker_is_cancelled(rows: Rows) -> None:
    job_id = rows.enqueue()
    rows.claim_one()
    rows.store.jobs.cancel(job_id, now_us=at(1))
    rows.rescue(executing=[job_id])
    assert rows.state(job_id) is State.CANCELLED
    assert_counters_are_true(rows.store)


@pytest.mark.parametrize("ending", ["running", "completed", "postponed", "discarded"])
def test_reservations_of_a_dead_worker_go_to_the_rescuer_under_a_new_lease(rows: Rows, ending: str) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 2, "m")
    lease = rows.placed(job_id)
    if ending == "completed":
        rows.complete(lease)
    elif ending == "postponed":
        rows.postpone(lease)
    elif ending == "discarded":
        rows.end(lease)
    (orphan,) = rows.rescue(executing=[])
    assert (orphan.job_id, orphan.model, orphan.device, orphan.reserved_bytes) == (job_id, "m", "gpu0", 2 * 10**9)
    assert (orphan.worker_id, orphan.running) == ("rescuer", False)
    assert orphan.lease > lease.lease
    assert not rows.store.attempts.release_device(job_id, lease.lease), "the dead worker's clean-up is fenced off"
    assert rows.store.attempts.release_device(job_id, orphan.lease)
    with rows.store.engine.lent() as connection:
        assert reservations(connection) == []
    assert_counters_are_true(rows.store)


def test_of_two_rescuers_only_one_gets_the_work(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    placed = rows.enqueue_sized("ai", 1)
    plain = rows.enqueue()
    rows.placed(placed)
    rows.claim_one()
    assert len(rows.rescue(by="one", executing=[plain, placed])) == 1
    assert rows.rescue(by="two", executing=[plain, placed]) == []
    assert rows.suspects() == [plain]
    assert rows.job(plain).lease == 2


def test_a_rescue_leaves_other_workers_alone(rows: Rows) -> None:
    rows.enqueue()
    rows.enqueue()
    rows.register("other")
    rows.claim(limit=1)
    lease = rows.claim_one(worker="other")
    rows.rescue("w")
    assert rows.complete(lease)


def test_a_worker_without_a_row_that_still_holds_something_is_noticed(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    plain = rows.enqueue()
    rows.claim_one(worker="gone")
    placed = rows.enqueue_sized("ai", 1)
    lease = rows.placed(placed, worker="away")
    rows.complete(lease)
    for worker in ("gone", "away"):
        rows.store.workers.unregister(worker, now_us=at(1))
    rows.enqueue()
    rows.claim_one()
    with rows.store.engine.lent() as connection:
        assert sorted(abandoned_workers(connection)) == ["away", "gone"]
    rows.rescue("gone", by="w", executing=[])
    (orphan,) = rows.rescue("away", by="w", executing=[])
    with rows.store.engine.lent() as connection:
        assert abandoned_workers(connection) == []
    assert rows.store.attempts.release_device(placed, orphan.lease)
    assert rows.job(plain).crashes == 0


def test_a_worker_that_was_rescued_cannot_extend_its_lease(rows: Rows) -> None:
    assert rows.store.workers.extend("w", expires_at_us=at(99))
    rows.rescue("w")
    assert not rows.store.workers.extend("w", expires_at_us=at(99))


def test_a_retried_job_whose_process_died_stays_a_suspect(rows: Rows) -> None:
    job_id = rows.enqueue()
    other_id = rows.enqueue()
    lease = rows.claim_one()
    assert lease.job_id == job_id
    rows.rescue(executing=[job_id])
    assert rows.suspects() == [job_id]
    rows.store.jobs.cancel(job_id, now_us=at(5))
    rows.store.jobs.cancel(other_id, now_us=at(5))
    for again in (job_id, other_id):
        rows.store.jobs.retry(again, now_us=at(6))
    assert rows.suspects() == [job_id], "the other one runs beside others"


@pytest.mark.parametrize("is_continued", [True, False])
def test_an_attempt_that_starts_again_instead_of_continuing_is_known_from_its_output(rows: Rows, is_continued: bool) -> None:
    job_id = rows.enqueue_sized("ai", 1)
    first = rows.placed(job_id, preemptible=True, continues=True)
    rows.store.attempts.report([Report(job_id, first.lease, "text", output_tokens=1)])
    rows.postpone(first, "preempted", s=10)
    rows.store.attempts.release_device(job_id, first.lease)
    lease = rows.placed(job_id, s=20, preemptible=True, continues=True)

    def continues() -> bool:
        with rows.store.engine.lent() as connection:
            (found,) = reservations(connection)
        return found.continues

    assert continues()
    for _ in range(2):
        rows.store.attempts.report(
            [Report(job_id, lease.lease, "more", output_tokens=2, output_lease=first.lease if is_continued else None)]
        )
        assert continues() is is_continued


def test_an_unloaded_model_keeps_only_its_memory(rows: Rows) -> None:
    job_id, other_id = rows.enqueue_sized("ai", 3, "m"), rows.enqueue_sized("ai", 3, "n")
    lease = rows.placed(job_id, device=replace(CARD, budget_bytes=6 * GB))
    assert not rows.store.attempts.note_unloaded(job_id, lease.lease, 0), "it still runs"
    rows.end(lease)
    assert rows.place(other_id, device=replace(CARD, budget_bytes=6 * GB)) is None
    assert rows.store.attempts.note_unloaded(job_id, lease.lease, 0)
    assert not rows.store.attempts.note_unloaded(job_id, lease.lease - 1, 0), "an earlier attempt"
    assert rows.place(other_id, device=replace(CARD, budget_bytes=5 * GB)) is None, "its memory is not back yet"
    rows.store.attempts.note_unloaded(job_id, lease.lease, 3 * GB + 1)
    assert rows.place(other_id, device=replace(CARD, budget_bytes=6 * GB)) is None, "it had more than it had reserved"
    assert rows.place(other_id, device=replace(CARD, budget_bytes=6 * GB + 1)) is not None
