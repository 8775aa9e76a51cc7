"""The claim: its order, the limits it keeps under the write lock, and what counts as work that others yield to."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from gpuqueue.domain.answers import Demand
from gpuqueue.domain.device import Resident
from gpuqueue.domain.job import Lease, State
from gpuqueue.domain.outcomes import Completed
from gpuqueue.domain.settings import DeviceSettings, Rate
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Pause
from gpuqueue.store.sqlite.queries import device_sightings
from tests.store.rows import CARD, GB, NOW_US, Rows, at, capacity_for


def test_jobs_are_claimed_by_priority_then_due_time_then_id_across_queues(rows: Rows) -> None:
    late, early = rows.enqueue("a", s=5), rows.enqueue("b", s=1)
    same_time = [rows.enqueue("b", s=1), rows.enqueue("a", s=1)]
    urgent = rows.enqueue("b", s=9, priority=1)
    lowest = rows.enqueue("a", s=0, priority=-1)
    order = [lease.job_id for _ in range(3) for lease in rows.claim("a", "b", limit=2, s=10)]
    assert order == [urgent, early, *same_time, late, lowest]


def test_each_claim_takes_the_next_lease_number_and_attempt(rows: Rows) -> None:
    job_id = rows.enqueue(max_attempts=9)
    for attempt, number in ((1, 1), (2, 2), (3, 3)):
        lease = rows.claim_one(s=number * 10)
        assert (lease.job_id, lease.attempt, lease.lease) == (job_id, attempt, number)
        assert lease.started_at == from_us(at(number * 10))
        assert rows.postpone(lease, due_s=number * 10 + 5, s=number * 10 + 1)


def test_a_job_is_never_claimed_twice(rows: Rows) -> None:
    ids = {rows.enqueue() for _ in range(20)}
    claimed = [lease.job_id for worker in ("a", "b", "c") for lease in rows.claim(limit=8, worker=worker)]
    assert sorted(claimed) == sorted(ids)


def test_concurrency_counts_all_workers_and_frees_with_the_finish(rows: Rows) -> None:
    rows.queue("work", concurrency=2)
    for _ in range(4):
        rows.enqueue()
    first = rows.claim(worker="a")
    assert len(first) == 2
    assert rows.claim(worker="b") == []
    late, leases = rows.store.attempts.finish_and_claim(
        [Completed(first[0], "null")],
        worker_id="a",
        queues=[rows.queues["work"]],
        rules=rows.rules(),
        capacity=capacity_for(9),
        now_us=at(2),
    )
    assert (late, len(leases)) == ([], 1), "a finish and the claim of its slot are one transaction"


def test_a_paused_queue_starts_nothing_until_the_pause_ends(rows: Rows) -> None:
    rows.enqueue()
    other = rows.enqueue("mail")
    now = from_us(NOW_US)
    rows.store.queues.pause("work", Pause("me", "why", now, None))
    assert [lease.job_id for lease in rows.claim(s=1e6)] == [other]
    assert rows.store.queues.resume("work", by="me", now_us=at(1))
    assert not rows.store.queues.resume("work", by="me", now_us=at(1))
    rows.store.queues.pause("work", Pause("me", "why", now, now + timedelta(seconds=10)))
    assert rows.claim(s=9.999999) == []
    assert len(rows.claim(s=10)) == 1


def test_a_pause_that_has_ended_by_itself_is_not_resumed(rows: Rows) -> None:
    rows.queue("work")
    now = from_us(NOW_US)
    rows.store.queues.pause("work", Pause("me", "why", now, now + timedelta(seconds=10)))
    assert not rows.store.queues.resume("work", by="me", now_us=at(10))
    assert rows.one("SELECT count(*) FROM events WHERE name = 'queue_resumed'") == 0
    rows.store.queues.pause("work", Pause("me", "why", now, now + timedelta(seconds=10)))
    assert rows.store.queues.resume("work", by="me", now_us=at(9.999999))


def test_a_held_queue_starts_nothing(rows: Rows) -> None:
    rows.enqueue()
    assert rows.claim(held=["work"]) == []
    assert len(rows.claim()) == 1


def batch_starts(rows: Rows, *, held: tuple[str, ...] = (), s: float = 0, worker: str = "w") -> bool:
    """Whether the queue that yields may start a job now; a job that it started is given back."""
    leases = rows.claim("batch", limit=1, s=s, held=held, worker=worker)
    for lease in leases:
        rows.postpone(lease, "released", due_s=0, s=s)
    return bool(leases)


@pytest.fixture
def yielding(rows: Rows) -> Rows:
    rows.queue("realtime")
    rows.queue("batch", yields_to=("realtime",))
    rows.enqueue("batch")
    return rows


def test_batch_yields_to_waiting_and_to_running_work_and_goes_on_after_it(yielding: Rows) -> None:
    assert batch_starts(yielding)
    yielding.enqueue("realtime")
    assert not batch_starts(yielding)
    lease = yielding.claim_one("realtime")
    assert not batch_starts(yielding)
    yielding.complete(lease)
    assert batch_starts(yielding)


def test_work_that_cannot_start_is_not_yielded_to(yielding: Rows) -> None:
    yielding.enqueue("realtime", due_s=100)
    assert batch_starts(yielding), "scheduled"
    yielding.postpone(yielding.claim_one("realtime", s=100), due_s=200, s=101)
    assert batch_starts(yielding, s=102), "retryable"
    assert not batch_starts(yielding, s=200), "and due again"
    assert batch_starts(yielding, s=201, held=("realtime",)), "held"
    yielding.store.queues.pause("realtime", Pause("me", "", from_us(at(0)), None))
    assert batch_starts(yielding, s=202), "paused"


def test_a_running_job_of_a_paused_queue_is_still_yielded_to(yielding: Rows) -> None:
    yielding.enqueue("realtime")
    yielding.claim_one("realtime")
    yielding.store.queues.pause("realtime", Pause("me", "", from_us(at(0)), None))
    assert not batch_starts(yielding)


def test_work_that_no_live_worker_serves_is_not_yielded_to(yielding: Rows) -> None:
    yielding.enqueue("realtime")
    yielding.store.workers.unregister("w", now_us=at(0))
    yielding.register("other", queues=("batch",))
    assert batch_starts(yielding, worker="other"), "none that serves it"
    yielding.register("serving", queues=("realtime",), expires_s=10)
    assert not batch_starts(yielding, s=9, worker="other")
    assert batch_starts(yielding, s=10, worker="other"), "its lease has ended"


def test_a_worker_without_a_row_claims_nothing_and_spends_no_rate(rows: Rows) -> None:
    rows.queue("work", rate=Rate(2, 60.0))
    rows.queue("ai", gpu=True)
    plain = rows.enqueue()
    placed = rows.enqueue_sized("ai", 1)
    rows.rescue("w", by="other")
    assert rows.claim("work") == []
    assert rows.place(placed) is None
    assert (rows.state(plain), rows.state(placed)) == (State.AVAILABLE, State.AVAILABLE)
    rows.enqueue()
    assert len(rows.claim("work", worker="other")) == 2, "the rate is whole"
    assert rows.place(placed, worker="other") is not None


def test_yielding_goes_along_the_chain_and_a_queue_that_yields_itself_has_no_work(yielding: Rows) -> None:
    yielding.queue("last", yields_to=("batch",))
    yielding.enqueue("last")
    assert yielding.claim("last") == []
    yielding.enqueue("realtime")
    # `batch` cannot start now, so `last` does not wait for it; the device is not theirs to share.
    assert len(yielding.claim("last")) == 1
    assert yielding.claim("batch") == []


def test_gpu_work_that_waits_for_the_device_is_yielded_to_and_work_that_never_fits_is_not(rows: Rows) -> None:
    rows.queue("realtime", gpu=True)
    rows.queue("batch", yields_to=("realtime",))
    rows.enqueue("batch")
    never = rows.enqueue_sized("realtime", 9)
    assert batch_starts(rows), "it never fits"
    unsized = rows.enqueue("realtime")
    assert not batch_starts(rows), "its demand is not known yet"
    rows.store.jobs.cancel(unsized, now_us=at(0))
    assert batch_starts(rows)
    blocker = rows.queue("blocker", gpu=True)
    taken = rows.placed(rows.enqueue_sized(blocker.name, 5))
    fits = rows.enqueue_sized("realtime", 1)
    assert rows.place(fits) is None
    assert not batch_starts(rows), "startable but for the device"
    rows.complete(taken)
    assert rows.state(never) is State.AVAILABLE


def test_a_job_is_placed_with_its_reservation_in_its_own_row(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 2, "m", arguments='{"a":1}')
    lease = rows.placed(job_id)
    assert lease.placement is not None
    assert (lease.model, lease.placement.device, lease.placement.reserved_bytes) == ("m", "gpu0", 2 * GB)
    job = rows.job(job_id)
    assert (job.state, job.device, job.reserved_bytes, job.worker_id) == (State.RUNNING, "gpu0", 2 * GB, "w")
    assert rows.place(job_id) is None, "it runs already"


def test_a_reservation_counts_until_its_clean_up_is_verified(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    first, second = rows.enqueue_sized("ai", 3, "m"), rows.enqueue_sized("ai", 3, "m")
    lease = rows.placed(first)
    assert rows.complete(lease)
    assert rows.place(second) is None
    assert rows.store.attempts.release_device(first, lease.lease)
    assert not rows.store.attempts.release_device(first, lease.lease)
    assert rows.place(second) is not None


def test_a_job_whose_own_last_attempt_is_not_cleaned_up_does_not_start(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    wide = DeviceSettings("gpu1", budget_bytes=5 * GB, slots=4, max_models=4)
    job_id = rows.enqueue_sized("ai", 1, "m")
    lease = rows.placed(job_id)
    rows.postpone(lease, "released", due_s=0)
    assert rows.state(job_id) is State.AVAILABLE
    assert rows.place(job_id, device=wide) is None
    rows.store.attempts.release_device(job_id, lease.lease)
    assert rows.place(job_id, device=wide) is not None


@pytest.mark.parametrize(
    ("device", "models", "sizes", "fit"),
    [
        (DeviceSettings("gpu0", 5 * GB), ("", ""), (1, 1), 1),
        (DeviceSettings("gpu0", 5 * GB, slots=2), ("m", "m"), (1, 1), 2),
        (DeviceSettings("gpu0", 5 * GB, slots=2), ("m", "n"), (1, 1), 1),
        (DeviceSettings("gpu0", 5 * GB, slots=2), ("m", ""), (1, 1), 2),
        (DeviceSettings("gpu0", 5 * GB, slots=2, max_models=2), ("m", "n"), (1, 1), 2),
        (DeviceSettings("gpu0", 5 * GB, slots=2, max_models=2), ("m", "n"), (3, 2.1), 1),
        (DeviceSettings("gpu0", 5 * GB, slots=2, max_models=2), ("m", "n"), (3, 2), 2),
    ],
)
def test_slots_models_and_budget_of_a_device_are_kept(
    rows: Rows, device: DeviceSettings, models: tuple[str, ...], sizes: tuple[float, ...], fit: int
) -> None:
    rows.queue("ai", gpu=True)
    ids = [rows.enqueue_sized("ai", size, model) for model, size in zip(models, sizes, strict=True)]
    assert sum(rows.place(job_id, device=device) is not None for job_id in ids) == fit


def test_a_device_tells_when_a_model_was_last_loaded(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    wide = DeviceSettings("gpu0", 9 * GB, slots=9, max_models=2)

    held = []

    def claimed(model: str, s: float) -> tuple[str, datetime | None]:
        held.append(rows.placed(rows.enqueue_sized("ai", 1, model), device=wide, s=s))
        with rows.store.engine.lent() as connection:
            found = device_sightings(connection)["gpu0"]
        return found.model, found.model_since

    assert claimed("m", s=1) == ("m", from_us(at(1)))
    assert claimed("M:latest", s=2) == ("m", from_us(at(1))), "it is there"
    assert claimed("n", s=3) == ("n", from_us(at(3)))
    assert claimed("", s=4) == ("n", from_us(at(3)))
    assert claimed("m", s=5) == ("n", from_us(at(3)))
    for lease in held:
        rows.complete(lease)
        rows.store.attempts.release_device(lease.job_id, lease.lease)
    rows.store.backends.publish_reading("gpu0", reading=None, residents=(Resident("m:latest", GB, GB),), now_us=at(6))
    assert claimed("m", s=7) == ("n", from_us(at(3))), "it was seen there"
    assert claimed("k", s=8) == ("k", from_us(at(8)))


def test_a_placement_is_checked_again_under_the_lock(rows: Rows) -> None:
    rows.queue("realtime", gpu=True)
    rows.queue("ai", gpu=True, concurrency=1, yields_to=("realtime",))
    wide = DeviceSettings("gpu0", budget_bytes=5 * GB, slots=9, max_models=9)
    job_id = rows.enqueue_sized("ai", 1)
    assert rows.place(job_id, held=["ai"]) is None
    rows.store.queues.pause("ai", Pause("me", "", from_us(at(0)), None))
    assert rows.place(job_id) is None
    rows.store.queues.resume("ai", by="me", now_us=at(0))
    urgent = rows.enqueue_sized("realtime", 1)
    assert rows.place(job_id, device=wide) is None, "it yields"
    rows.store.jobs.cancel(urgent, now_us=at(0))
    assert rows.place(job_id, gb=6) is None, "more than the budget"
    assert rows.place(job_id, device=wide) is not None
    assert rows.place(rows.enqueue_sized("ai", 1), device=wide) is None, "concurrency"


def test_a_job_that_was_cancelled_or_expired_meanwhile_is_not_placed(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    cancelled, expired = rows.enqueue_sized("ai", 1), rows.enqueue_sized("ai", 1, expires_s=5)
    rows.store.jobs.cancel(cancelled, now_us=at(1))
    assert rows.place(cancelled) is None
    assert rows.place(expired, s=5) is None
    assert rows.state(expired) is State.DISCARDED


def test_a_job_whose_demand_became_unknown_or_another_meanwhile_is_not_placed(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 1, "m")
    placed = rows.job(job_id)
    rows.store.jobs.forget_demands_of(None)
    assert rows.place(job_id, seen=placed) is None
    assert rows.place(job_id) is None, "nobody knows what it needs"
    for demand in (Demand(2 * GB, "m"), Demand(GB, "n")):
        rows.store.jobs.set_demands([(job_id, demand)], largest_bytes=5 * GB)
        assert rows.place(job_id, seen=placed) is None
    rows.store.jobs.set_demands([(job_id, Demand(GB, "m"))], largest_bytes=5 * GB)
    lease = rows.place(job_id, seen=placed)
    assert lease is not None and lease.model == "m"


def test_a_plain_claim_never_takes_a_job_that_holds_a_device(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    job_id = rows.enqueue_sized("ai", 0.001)
    lease = rows.placed(job_id)
    rows.postpone(lease, "released", due_s=0)
    rows.queue("ai")
    assert rows.claim("ai") == []
    assert CARD.name == rows.job(job_id).device


def test_a_job_is_passed_since_the_first_time_only(rows: Rows) -> None:
    rows.queue("ai", gpu=True)
    first, second, third = (rows.enqueue_sized("ai", 1, model) for model in ("m", "n", "n"))
    lease = rows.placed(second, s=5, passed=first)
    rows.complete(lease, s=6)
    rows.store.attempts.release_device(second, lease.lease)
    lease = rows.placed(third, s=7, passed=first)
    assert rows.job(first).passed_at == from_us(at(5))
    rows.complete(lease, s=8)
    rows.store.attempts.release_device(third, lease.lease)
    rows.postpone(rows.placed(first, s=9), "preempted", s=10)
    assert rows.job(first).passed_at == from_us(at(5)), "whoever came between"


@pytest.mark.parametrize("on_device", [False, True])
def test_an_attempt_that_was_given_back_spends_the_rate_once(rows: Rows, on_device: bool) -> None:
    rows.queue("work", gpu=on_device, rate=Rate(2, 3600.0))
    job_id = rows.enqueue_sized("work", 1) if on_device else rows.enqueue()

    def starts(s: float) -> Lease:
        lease = rows.placed(job_id, s=s) if on_device else rows.claim_one(s=s)
        rows.store.attempts.release_device(job_id, lease.lease)
        return lease

    def left() -> float:
        return rows.one("SELECT round(rate_level, 1) FROM queues WHERE name = 'work'")

    for s, outcome in ((0, "preempted"), (1, "released")):
        rows.postpone(starts(s), outcome, s=s + 0.5)
        rows.store.attempts.release_device(job_id, rows.job(job_id).lease)
        assert left() == 1.0
    rows.postpone(starts(2), "retried", due_s=3, s=2.5)
    rows.store.attempts.release_device(job_id, rows.job(job_id).lease)
    assert left() == 1.0
    rows.store.jobs.move_due(now_us=at(4))
    if on_device:
        rows.store.jobs.set_demands([(job_id, Demand(GB))], largest_bytes=CARD.budget_bytes)
    starts(4)
    assert left() == 0.0, "a retry starts anew"
