"""What goes on now: running attempts, the job that is next, and when one is due."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuqueue.domain.outcomes import Report
from gpuqueue.domain.units import from_us
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import current
from tests.store.rows import CARD, Rows, at


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    rows = Rows(open_store(tmp_path / "jobs.db"))
    rows.queue("ai", gpu=True)
    rows.queue("work")
    return rows


def test_a_running_attempt_is_told_with_all_that_it_said(rows: Rows) -> None:
    job_id = rows.enqueue_sized("ai", 2, "gemma")
    lease = rows.placed(job_id, s=3)
    rows.store.attempts.report([Report(job_id, lease.lease, "text", progress=(0.5, "half"), output_tokens=7)])
    rows.store.jobs.cancel(job_id, now_us=at(4))
    rows.store.attempts.request_preemption(job_id, lease.lease)
    with rows.store.engine.lent() as connection:
        (found,) = current.running_attempts(connection, "ai", limit=10)
        assert current.running_attempts(connection, "work", limit=10) == []
    assert (found.id, found.queue, found.task, found.model, found.device) == (job_id, "ai", "app.task", "gemma", "gpu0")
    assert (found.lease, found.attempt, found.worker_id, found.started_at) == (lease.lease, 1, "w", from_us(at(3)))
    assert (found.progress, found.progress_note, found.output_tokens) == (0.5, "half", 7)
    assert found.cancel_requested and found.preempt_requested


@pytest.mark.parametrize(
    ("arguments", "model"), [('{"model": "m"}', "m"), ('{"model": {"a": 1}}', ""), ("{}", ""), ('{"to": "x"}', "")]
)
def test_a_model_that_only_the_arguments_name_is_told_too(rows: Rows, arguments: str, model: str) -> None:
    rows.enqueue("work", arguments=arguments)
    rows.claim_one("work")
    with rows.store.engine.lent() as connection:
        (found,) = current.running_attempts(connection, "work", limit=10)
    assert (found.model, found.progress, found.progress_note, found.cancel_requested) == (model, None, "", False)


def test_no_more_running_attempts_are_read_than_asked_for(rows: Rows) -> None:
    for _ in range(5):
        rows.enqueue("work")
    rows.claim("work")
    with rows.store.engine.lent() as connection:
        assert len(current.running_attempts(connection, "work", limit=3)) == 3


def test_the_first_waiting_job_is_the_one_that_runs_next(rows: Rows) -> None:
    with rows.store.engine.lent() as connection:
        assert current.first_waiting(connection, "work", largest_bytes=0) is None
    late = rows.enqueue("work", s=2)
    early = rows.enqueue("work", s=1)
    with rows.store.engine.lent() as connection:
        found = current.first_waiting(connection, "work", largest_bytes=0)
    assert found is not None and found.id == early
    urgent = rows.enqueue("work", s=3, priority=1)
    with rows.store.engine.lent() as connection:
        found = current.first_waiting(connection, "work", largest_bytes=0)
    assert found is not None and found.id == urgent
    assert late


def test_of_models_and_sizes_the_earliest_is_next_and_what_fits_nowhere_comes_last(rows: Rows) -> None:
    too_large = rows.enqueue_sized("ai", 50, "huge", s=0)

    def first() -> int | None:
        with rows.store.engine.lent() as connection:
            found = current.first_waiting(connection, "ai", largest_bytes=CARD.budget_bytes)
        return None if found is None else found.id

    assert first() == too_large
    second = rows.enqueue_sized("ai", 4, "b", s=2)
    assert first() == second
    assert first() != rows.enqueue_sized("ai", 1, "c", s=3)
    assert rows.enqueue_sized("ai", 1, "a", s=1) == first()


def test_the_next_due_job_of_a_queue_is_found_beside_others(rows: Rows) -> None:
    rows.enqueue("work", due_s=10)
    rows.enqueue("ai", due_s=50)
    rows.enqueue("ai", due_s=40)
    with rows.store.engine.lent() as connection:
        assert current.next_due(connection, "ai") == from_us(at(40))
        assert current.next_due(connection, "nothing") is None
