"""Whether many processes that write at once are served fairly, and none meets a lock."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import quantiles

import pytest

from gpuqueue import Config, GPUQueue
from tests.benchmarks.floor import seconds_each
from tests.history import check_rows

pytestmark = pytest.mark.benchmark

PRODUCER = """
import json, sys, time
from gpuqueue import GPUQueue
gq = GPUQueue(sys.argv[1])

@gq.task(name="noop", queue="work")
def noop(text: str) -> None: ...

noop.enqueue(text="warm")
sys.stdin.readline()
worst_s, count, end_s = 0.0, 0, time.monotonic() + float(sys.argv[2])
while (began_s := time.monotonic()) < end_s:
    noop.enqueue(text="x" * 188)
    worst_s, count = max(worst_s, time.monotonic() - began_s), count + 1
print(json.dumps({"count": count, "worst_s": worst_s}))
"""
DRAINER = """
import sys
from gpuqueue import Config, GPUQueue, Worker
gq = GPUQueue(config=Config.load(None, environ={}, database=sys.argv[1], synchronous=sys.argv[2]))

@gq.task(name="noop", queue="work")
def noop(text: str) -> None: ...

Worker(gq, threads=4).run()
"""


def test_eight_producers_share_the_lock_and_none_is_starved(tmp_path: Path) -> None:
    database = str(tmp_path / "queue.db")
    GPUQueue(database).store.ensure_queue("work")
    command = [sys.executable, "-c", PRODUCER, database, "10"]
    producers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    for producer in producers:
        assert producer.stdin is not None
        producer.stdin.write("go\n")
        producer.stdin.flush()
    found = [json.loads(producer.communicate(timeout=60)[0]) for producer in producers]
    assert [producer.returncode for producer in producers] == [0] * 8
    counts = [item["count"] for item in found]
    worst_s = max(item["worst_s"] for item in found)
    print(f"\n8 producers, 10 s: {sum(counts):,} jobs; least {min(counts):,}, most {max(counts):,}; worst {worst_s * 1e3:.0f} ms")
    assert worst_s < 0.5
    assert min(counts) >= max(counts) / 2


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_a_producer_beside_four_draining_workers_is_served_soon(tmp_path: Path, synchronous: str) -> None:
    database = str(tmp_path / "queue.db")
    gq = GPUQueue(config=Config.load(None, environ={}, database=database, synchronous=synchronous))

    @gq.task(name="noop", queue="work")
    def noop(text: str) -> None: ...

    gq.enqueue_many([(noop, {"text": "x" * 188})] * 400_000)
    workers = [subprocess.Popen([sys.executable, "-c", DRAINER, database, synchronous]) for _ in range(4)]
    try:
        give_up_s = time.monotonic() + 60
        while len(gq.workers()) < 4 and time.monotonic() < give_up_s:
            time.sleep(0.05)
        times = [seconds_each(lambda: noop.enqueue(text="x" * 188), 1) for _ in range(1000)]
        left = gq.counts()["work"].get("available", 0)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(timeout=60)
    p99_s = quantiles(times, n=100)[98]
    print(f"\nenqueue beside 4 draining workers at {synchronous}: p99 {p99_s * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")
    with closing(sqlite3.connect(database)) as connection:
        check_rows(connection)
    assert left > 0, "the workers had drained the queue before the measurement ended"
    assert p99_s < 0.05
