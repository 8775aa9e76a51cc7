"""How fast a worker empties a queue, beside a plain loop of one-row claims and acknowledgements."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import pytest

from gpuqueue import GPUQueue, Worker
from tests.benchmarks.floor import Floor

pytestmark = pytest.mark.benchmark
JOBS = 10_000
SPAN = "SELECT min(started_at), max(finished_at) FROM jobs WHERE id > ?"


def test_sixteen_threads_drain_faster_than_a_plain_loop(tmp_path: Path) -> None:
    gq = GPUQueue(tmp_path / "ours.db")

    @gq.task(queue="work")
    def noop(text: str) -> None: ...

    floor = Floor(tmp_path / "floor.db", synchronous="normal")
    rates = []
    for _ in range(7):
        gq.enqueue_many([(noop, {"text": "x" * 188})] * JOBS)
        for _ in range(JOBS):
            floor.insert()
        with closing(sqlite3.connect(gq.database)) as connection:
            (before,) = connection.execute("SELECT max(id) FROM jobs").fetchone()
        Worker(gq, threads=16, burst=True).run()
        # From the first claim to the last finish: a worker's start is not what a long-running one pays.
        with closing(sqlite3.connect(gq.database)) as connection:
            first_us, last_us = connection.execute(SPAN, (before - JOBS,)).fetchone()
        ours = JOBS / ((last_us - first_us) / 1e6)
        began_s = time.perf_counter()
        while floor.claim_and_acknowledge():
            pass
        rates.append((ours, JOBS / (time.perf_counter() - began_s)))
    ratio = median(a / b for a, b in rates)
    print(f"\ndrain: {median(a for a, _ in rates):,.0f} jobs/s, plain loop {median(b for _, b in rates):,.0f}, ratio {ratio:.2f}")
    assert gq.counts()["work"] == {"completed": 7 * JOBS}
    assert ratio >= 1.5
