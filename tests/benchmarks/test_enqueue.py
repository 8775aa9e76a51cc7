"""How much a job costs its producer, beside a plain one-row insert."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuqueue import Config, GPUQueue
from tests.benchmarks.floor import Floor, ratio_in_turn, seconds_each

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize(("synchronous", "count", "limit"), [("normal", 500, 1.7), ("full", 100, 1.1)])
def test_an_enqueue_costs_little_more_than_a_plain_insert(tmp_path: Path, synchronous: str, count: int, limit: float) -> None:
    gq = GPUQueue(config=Config.load(None, environ={}, database=str(tmp_path / "ours.db"), synchronous=synchronous))

    @gq.task(queue="work")
    def noop(text: str) -> None: ...

    text = "x" * 188
    floor = Floor(tmp_path / "floor.db", synchronous=synchronous)
    for _ in range(3000):  # until both logs have reached the size at which they begin anew
        noop.enqueue(text=text)
        floor.insert()
    ratio, ours_s, floor_s = ratio_in_turn(
        lambda: seconds_each(lambda: noop.enqueue(text=text), count),
        lambda: seconds_each(floor.insert, count),
        rounds=61,
    )
    print(f"\nenqueue at {synchronous}: {ours_s * 1e6:.1f} µs, plain insert {floor_s * 1e6:.1f} µs, ratio {ratio:.2f}")
    assert ratio <= limit
