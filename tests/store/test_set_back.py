"""A clock that was set back leaves nothing that waits for the time before: what it ends keeps its length."""

from __future__ import annotations

from datetime import timedelta

from gpuqueue.domain.settings import Rate
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Pause
from tests.store.rows import Rows, at

HOUR_S = 3600.0


def test_a_breaker_is_checked_again_within_its_own_wait(rows: Rows) -> None:
    backends = rows.store.backends
    backends.lost("ollama", error="refused", probe_every_s=5, longest_s=300, now_us=at(HOUR_S))
    rows.store.upkeep.set_back(now_us=at(0))
    with rows.store.reading() as reads:
        row = reads.backends()["ollama"]
    assert (row.available, row.since, row.checked_at) == (False, from_us(at(0)), from_us(at(0)))
    assert row.retry_at == from_us(at(5))


def test_a_pause_keeps_its_length_and_one_without_an_end_stays(rows: Rows) -> None:
    for name, until in (("timed", from_us(at(HOUR_S + 60))), ("open", None)):
        rows.queue(name)
        rows.store.queues.pause(name, Pause("me", "", from_us(at(HOUR_S)), until))
    rows.store.upkeep.set_back(now_us=at(0))
    with rows.store.reading() as reads:
        pauses = reads.pauses(now_us=at(59))
    assert pauses["timed"].until == from_us(at(60))
    assert pauses["open"].until is None


def test_a_rate_accrues_from_now_on(rows: Rows) -> None:
    rows.queue("work", rate=Rate(1, 60.0))
    rows.enqueue()
    rows.enqueue()
    rows.claim_one(s=HOUR_S)
    rows.store.upkeep.set_back(now_us=at(0))
    assert rows.claim(s=59) == []
    assert len(rows.claim(s=60)) == 1


def test_a_running_attempt_began_now(rows: Rows) -> None:
    job_id = rows.enqueue()
    lease = rows.claim_one(s=HOUR_S)
    rows.store.upkeep.set_back(now_us=at(0))
    assert rows.job(job_id).started_at == from_us(at(0))
    assert rows.complete(lease)


def test_what_lies_in_the_past_stays_as_it_is(rows: Rows) -> None:
    rows.queue("work")
    until = from_us(at(HOUR_S))
    rows.store.queues.pause("work", Pause("me", "", from_us(at(0)), until))
    rows.store.backends.lost("ollama", error="refused", probe_every_s=5, longest_s=300, now_us=at(0))
    rows.store.upkeep.set_back(now_us=at(1))
    with rows.store.reading() as reads:
        assert reads.pauses(now_us=at(1))["work"] == Pause("me", "", from_us(at(0)), until)
        assert reads.backends()["ollama"].retry_at == from_us(at(0)) + timedelta(seconds=5)
