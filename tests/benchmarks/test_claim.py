"""Whether a claim costs the same however many jobs wait, are scheduled, or do not fit the card."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from gpuqueue.domain.answers import Placement
from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.outcomes import Postponed
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import claims
from gpuqueue.store.store import Store
from tests.benchmarks.floor import PAYLOAD

pytestmark = pytest.mark.benchmark
NOW_US = 1_700_000_000_000_000
FLAT = 1.2
WORK = QueueSettings("work")
GPU = QueueSettings("gpu", gpu=True)
DEVICE = DeviceSettings("gpu0", budget_bytes=8_000_000_000)


def fill(store: Store, count: int, *, queue: str, state: str, offset_us: int = 0, demand: str = "0", size: str = "0") -> None:
    store.engine.writer.run(
        lambda connection: connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO jobs (queue, task, state, enqueued_at, scheduled_at, arguments, "
            "demand_bytes, demand_class, demand_model) "
            f"SELECT ?, 'noop', ?, ?, ? + i, ?, {demand}, {size}, CASE WHEN {size} > 0 THEN 'm' ELSE '' END FROM n",
            (count, queue, state, NOW_US, NOW_US - 10_000_000 + offset_us, PAYLOAD),
        )
    )


def claim_plain(store: Store) -> Callable[[], None]:
    rules = ClaimRules(queues={"work": WORK})

    def once() -> None:
        _, leases = store.attempts.finish_and_claim(
            (), worker_id="w", queues=[WORK], rules=rules, capacity=Capacity(1), now_us=NOW_US
        )
        store.attempts.finish([Postponed(lease, "released", NOW_US) for lease in leases], now_us=NOW_US)
        assert len(leases) == 1

    return once


def microseconds(stores: list[tuple[str, Callable[[], None]]], *, rounds: int = 31, count: int = 200) -> dict[str, float]:
    """Time each in turn, so that the machine's moods fall on all alike; returns medians."""
    times: dict[str, list[float]] = {name: [] for name, _ in stores}
    for _ in range(rounds):
        for name, once in stores:
            began_s = time.perf_counter()
            for _ in range(count):
                once()
            times[name].append((time.perf_counter() - began_s) / count * 1e6)
    return {name: median(values[1:]) for name, values in times.items()}


def test_a_claim_is_flat_from_a_thousand_to_a_million_waiting_jobs(tmp_path: Path) -> None:
    stores = {}
    for name, waiting, scheduled in (("1k", 1_000, 0), ("1M", 1_000_000, 0), ("1M beside 1M scheduled", 1_000_000, 1_000_000)):
        store = stores[name] = open_store(tmp_path / f"{waiting}-{scheduled}.db")
        fill(store, waiting, queue="work", state="available")
        if scheduled:
            fill(store, scheduled, queue="work", state="scheduled", offset_us=3_600_000_000)
        store.upkeep.checkpoint()
    found = microseconds([(name, claim_plain(store)) for name, store in stores.items()])
    print("\nclaim and give back: " + ", ".join(f"{name} {value:.1f} µs" for name, value in found.items()))
    assert found["1M"] <= FLAT * found["1k"]
    assert found["1M beside 1M scheduled"] <= FLAT * found["1k"]


def test_a_claim_is_flat_behind_a_hundred_thousand_jobs_that_do_not_fit(tmp_path: Path) -> None:
    fits = dict(queue="gpu", state="available", demand="500000000", size="8")
    stores = {}
    for name, misfits in (("nothing before it", 0), ("100k misfits before it", 100_000)):
        store = stores[name] = open_store(tmp_path / f"{misfits}.db")
        if misfits:
            # 1,000 distinct demands, all larger than the card, all older than the one that fits.
            fill(
                store,
                misfits,
                queue="gpu",
                state="available",
                offset_us=-60_000_000,
                demand="9000000000 + (i % 1000) * 70000000",
                size="1 + (9000000000 + (i % 1000) * 70000000) / 67108864",
            )
        fill(store, 1, **fits)

    def claim_gpu(store: Store) -> Callable[[], None]:
        rules = ClaimRules(queues={"gpu": GPU}, largest_bytes=DEVICE.budget_bytes)

        def once() -> None:
            with store.engine.lent() as connection:
                (job,) = claims.candidates(connection, "gpu", room_bytes=DEVICE.budget_bytes)
            lease = store.attempts.claim_placed(
                job,
                Placement("gpu0", job.demand_bytes),
                worker_id="w",
                queue=GPU,
                device=DEVICE,
                rules=rules,
                now_us=NOW_US,
            )
            assert lease is not None
            store.attempts.finish([Postponed(lease, "released", NOW_US)], now_us=NOW_US)
            assert store.attempts.release_device(lease.job_id, lease.lease)

        return once

    found = microseconds([(name, claim_gpu(store)) for name, store in stores.items()], count=50)
    print("\nfind, claim and release: " + ", ".join(f"{name} {value:.1f} µs" for name, value in found.items()))
    assert found["100k misfits before it"] <= FLAT * found["nothing before it"]
