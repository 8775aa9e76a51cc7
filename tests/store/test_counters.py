"""The counters of finished jobs equal a real count after every mixture of operations, and every invariant of the rows holds."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuqueue.domain.errors import StateError
from gpuqueue.domain.job import Cancellation, Lease, State
from gpuqueue.domain.outcomes import Completed, Ended, Outcome, Postponed
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import integrity, queries
from gpuqueue.store.store import Store
from tests.store.rows import BOOM, CARD, Rows, assert_counters_are_true, at

# What makes jobs and starts them comes often, so that the rest has something to act on.
OPERATIONS = (
    "enqueue", "enqueue", "enqueue", "claim", "claim", "place", "complete", "cancel",
    "enqueue", "enqueue later", "enqueue expiring", "claim", "place", "complete", "discard", "cancel running", "retry later",
    "cancel all", "retry failed",
    "snooze", "give back", "finish late", "release", "rescue", "cancel", "retry", "refuse", "expire", "prune", "mixed finish",
)  # fmt: skip
steps = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**16)), min_size=40, max_size=100)


class Run:
    """One random history on a real file."""

    def __init__(self, store: Store) -> None:
        self.rows = Rows(store)
        self.store = store
        for name, gpu in (("a", False), ("b", False), ("ai", True)):
            self.rows.queue(name, gpu=gpu)
        self.clock = itertools.count(1)
        self.held: list[Lease] = []
        self.old: list[Lease] = []
        self.ids: list[int] = []

    def lease(self, pick: int) -> Lease | None:
        if not self.held:
            return None
        lease = self.held.pop(pick % len(self.held))
        self.old.append(lease)
        return lease

    def outcome(self, kind: str, lease: Lease, s: int, pick: int) -> Outcome:
        if kind == "complete":
            return Completed(lease, "1" if pick % 2 else '"' + "x" * 1500 + '"')
        if kind in ("discard", "cancel running"):
            return Ended(lease, State.DISCARDED if kind == "discard" else State.CANCELLED, BOOM)
        return Postponed(lease, *(("released", at(s)) if kind == "give back" else ("retried", at(s + pick % 4))))

    def step(self, kind: str, pick: int) -> None:
        s, rows = next(self.clock), self.rows
        match kind:
            case "enqueue" | "enqueue later" | "enqueue expiring":
                queue = ("a", "b", "ai")[pick % 3]
                options = {"enqueue later": {"due_s": s + pick % 5}, "enqueue expiring": {"expires_s": s + pick % 5}}.get(
                    kind, {}
                )
                place = rows.enqueue if queue != "ai" else lambda *args, **rest: rows.enqueue_sized("ai", pick % 7, **rest)
                self.ids.append(place(queue, s=s, priority=pick % 3, **options))
            case "claim":
                self.held += rows.claim("a", "b", limit=1 + pick % 4, s=s)
            case "place":
                waiting = [job_id for job_id in self.ids if self.exists(job_id) and rows.job(job_id).queue == "ai"]
                for job_id in waiting:
                    if (lease := rows.place(job_id, s=s)) is not None:
                        self.held.append(lease)
                        break
            case "complete" | "discard" | "cancel running" | "retry later" | "snooze" | "give back":
                if (lease := self.lease(pick)) is not None:
                    assert self.store.attempts.finish([self.outcome(kind, lease, s, pick)], now_us=at(s)) == []
            case "finish late":
                if self.old:
                    lease = self.old[pick % len(self.old)]
                    late = self.outcome(("complete", "discard", "retry later")[pick % 3], lease, s, pick)
                    assert self.store.attempts.finish([late], now_us=at(s)) == [lease]
            case "mixed finish":
                kinds = ("complete", "discard", "retry later")
                late = [self.outcome(kinds[(pick + i) % 3], lease, s, pick) for i, lease in enumerate(self.old[-2:])]
                mine = [lease for lease in (self.lease(pick), self.lease(pick)) if lease is not None]
                good = [self.outcome(kinds[(pick + i) % 3], lease, s, pick) for i, lease in enumerate(mine)]
                found = self.store.attempts.finish([*late, *good], now_us=at(s))
                assert sorted(lease.job_id for lease in found) == sorted(outcome.lease.job_id for outcome in late)
            case "release":
                for lease in self.old:
                    self.store.attempts.release_device(lease.job_id, lease.lease)
            case "rescue":
                executing = None if pick % 2 else [lease.job_id for lease in self.held[::2]]
                orphans = rows.rescue("w", executing=executing, s=s, max_crashes=1 + pick % 3)
                for orphan in orphans:
                    assert self.store.attempts.release_device(orphan.job_id, orphan.lease)
                self.old += self.held
                self.held = []
                rows.register("w")
            case "cancel" | "retry":
                if self.ids and self.exists(job_id := self.ids[pick % len(self.ids)]):
                    if kind == "cancel":
                        self.store.jobs.cancel(job_id, now_us=at(s))
                    else:
                        with contextlib.suppress(StateError):
                            self.store.jobs.retry(job_id, now_us=at(s))
            case "cancel all":
                queue = ("a", "b", "ai")[pick % 3]
                unfinished = rows.one("SELECT count(*) FROM jobs WHERE finished_at IS NULL AND queue = ?", queue)
                running = sum(lease.queue == queue for lease in self.held)
                assert self.store.jobs.cancel_all(queue, now_us=at(s)) == Cancellation(unfinished - running, running)
            case "retry failed":
                queue = (None, "a", "b", "ai")[pick % 4]
                discarded = rows.one("SELECT count(*) FROM jobs WHERE state = 'discarded' AND coalesce(?, queue) = queue", queue)
                assert self.store.jobs.retry_failed(queue, now_us=at(s)) == discarded
            case "refuse":
                self.store.jobs.refuse_waiting(("a", "b", "ai")[pick % 3], message="away", now_us=at(s))
            case "expire":
                self.store.jobs.move_due(now_us=at(s))
            case "prune":
                self.store.jobs.prune(
                    (State.COMPLETED, State.DISCARDED, State.CANCELLED)[pick % 3], before_us=at(s), limit=1 + pick % 3
                )

    def exists(self, job_id: int) -> bool:
        return bool(self.rows.one("SELECT count(*) FROM jobs WHERE id = ?", job_id))

    def check(self) -> None:
        assert_counters_are_true(self.store)
        with self.store.engine.lent() as connection:
            assert list(integrity.contradictions(connection, self.store.engine.path)) == []
        one = self.rows.one
        assert one("SELECT count(*) FROM jobs WHERE state = 'running'") == len(self.held)
        assert one("SELECT coalesce(sum(reserved_bytes), 0) FROM jobs WHERE device IS NOT NULL") <= CARD.budget_bytes
        assert one("SELECT count(*) FROM jobs WHERE device IS NOT NULL") <= CARD.slots
        with self.store.engine.lent() as connection:
            counted = queries.counts(connection)
        for state in State:
            assert sum(found.get(state, 0) for found in counted.values()) == one(
                "SELECT count(*) FROM jobs WHERE state = ?", str(state)
            )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(steps)
def test_counters_and_invariants_hold_after_every_mixture(history: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "jobs.db", synchronous="off")
        try:
            run = Run(store)
            for kind, pick in history:
                run.step(kind, pick)
                run.check()
        finally:
            store.close()
