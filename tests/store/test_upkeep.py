"""Upkeep that takes several transactions does all of its work, also after a worker died in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from gpuqueue.domain.answers import Demand
from gpuqueue.domain.job import Extras, Lease, NewJob, State
from gpuqueue.domain.outcomes import Report
from gpuqueue.store.sqlite.jobs import ROWS_AT_ONCE, UPKEEP_ROWS
from tests.store.rows import GB, NOW_US, Rows, at

COUNT = 2 * UPKEEP_ROWS + 7


class Died(BaseException):
    """What ends a worker between two transactions."""


@pytest.fixture
def die_after_one(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Ends the work after its first transaction."""

    def run(work: Callable[[], object]) -> None:
        with monkeypatch.context() as patch, pytest.raises(Died):

            def rest(_began_s: float) -> None:
                raise Died

            patch.setattr("gpuqueue.store.sqlite.engine.rest", rest)
            work()

    return run


def enqueue(rows: Rows, count: int, **extras: Any) -> list[int]:
    rows.queue("ai", gpu=True)
    return rows.store.jobs.enqueue_many([NewJob("ai", "app.task", "{}", NOW_US, extras=Extras(**extras)) for _ in range(count)])


def count(rows: Rows, condition: str) -> int:
    return int(rows.one(f"SELECT count(*) FROM jobs WHERE {condition}"))


def test_a_job_with_very_many_rows_is_pruned_with_all_of_them(
    rows: Rows, die_after_one: Callable[[Callable[[], object]], None]
) -> None:
    job_id = rows.enqueue()
    lease: Lease = rows.claim_one()
    for _ in range(3):
        rows.store.attempts.report([Report(job_id, lease.lease, "text", [(at(1), "line")] * ROWS_AT_ONCE)])
    rows.complete(lease)
    rows.enqueue()
    die_after_one(lambda: rows.store.jobs.prune(State.COMPLETED, before_us=at(9), limit=5))
    assert rows.state(job_id) is State.COMPLETED, "its row goes last"
    assert 0 < rows.one("SELECT count(*) FROM logs") < 3 * ROWS_AT_ONCE
    assert rows.store.jobs.prune(State.COMPLETED, before_us=at(9), limit=5) == 1
    assert [rows.one(f"SELECT count(*) FROM {table}") for table in ("logs", "chunks", "attempts", "payloads")] == [0] * 4
    assert count(rows, "1") == 1


def test_settings_are_accepted_only_when_no_job_has_a_demand_of_the_old_ones(
    rows: Rows, die_after_one: Callable[[Callable[[], object]], None]
) -> None:
    ids = enqueue(rows, COUNT)
    rows.store.jobs.set_demands([(job_id, Demand(GB * (1 + job_id % 3), "m")) for job_id in ids], largest_bytes=2 * GB)

    def accept() -> object:
        return rows.store.workers.accept_configuration(digest="new", settings={}, force=True, now_us=at(1))

    die_after_one(accept)
    assert count(rows, "demand_class = 0") == UPKEEP_ROWS
    assert rows.one("SELECT count(*) FROM configuration") == 0, "the next worker begins again"
    assert accept() is None
    assert count(rows, "demand_class = 0 AND demand_model = ''") == COUNT
    assert rows.one("SELECT digest FROM configuration") == "new"


def test_all_jobs_that_waited_for_a_backend_become_available_when_it_answers(
    rows: Rows, die_after_one: Callable[[Callable[[], object]], None]
) -> None:
    enqueue(rows, COUNT)

    def snooze(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE jobs SET state = 'retryable', waiting_for = 'ollama', scheduled_at = ?", (at(900),))

    rows.store.engine.writer.run(snooze)
    rows.store.backends.lost("ollama", error="gone", probe_every_s=1, longest_s=1, now_us=at(1))
    die_after_one(lambda: rows.store.backends.answered("ollama", worked=True, now_us=at(2)))
    assert count(rows, "state = 'available'") == UPKEEP_ROWS
    assert not rows.store.backends.answered("ollama", worked=False, now_us=at(3)), "it was up already"
    assert count(rows, "state = 'available' AND waiting_for IS NULL") == COUNT
    with rows.store.reading() as reads:
        backend = reads.backends()["ollama"]
    assert (backend.available, backend.since) == (True, None)


def test_a_backend_that_is_lost_again_wakes_no_more_jobs(
    rows: Rows, die_after_one: Callable[[Callable[[], object]], None]
) -> None:
    enqueue(rows, COUNT)
    rows.store.engine.writer.run(
        lambda connection: connection.execute("UPDATE jobs SET state = 'retryable', waiting_for = 'ollama'")
    )
    outage = {"error": "gone", "probe_every_s": 1, "longest_s": 1}
    rows.store.backends.lost("ollama", now_us=at(1), **outage)
    die_after_one(lambda: rows.store.backends.answered("ollama", worked=True, now_us=at(2)))
    rows.store.backends.lost("ollama", now_us=at(3), **outage)
    assert not rows.store.engine.backends._wake("ollama")
    assert count(rows, "state = 'available'") == UPKEEP_ROWS


def test_a_job_that_was_postponed_is_sized_again_when_it_is_due(rows: Rows) -> None:
    """What determines its demand may have changed meanwhile, and forgetting demands leaves postponed jobs alone."""
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 1, "m")
    lease = rows.placed(job_id)
    rows.postpone(lease, due_s=5)
    rows.store.attempts.release_device(job_id, lease.lease)
    assert rows.job(job_id).demand_bytes == GB
    rows.store.jobs.move_due(now_us=at(9))
    assert (rows.job(job_id).demand_bytes, rows.job(job_id).model) == (0, "")
