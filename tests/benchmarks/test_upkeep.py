"""Whether the queue's own upkeep among a million jobs makes a producer wait."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

import pytest

from gpuqueue import GPUQueue
from gpuqueue.store.store import Store
from tests.benchmarks.floor import PAYLOAD

pytestmark = pytest.mark.benchmark
MOST = 2.0
ROUNDS = 8
ROUND_S = 2.0
PACE_S = 0.002
DAY_US = 86_400_000_000
KINDS = {
    "kept": (700_000, "'work', 'completed', NULL, '', 0, :now - 90 * :day"),
    "to be pruned": (100_000, "'work', 'cancelled', NULL, '', 0, :now - 10 * :day"),
    "waiting": (140_000, "'work', 'available', NULL, '', 0, NULL"),
    "sized": (20_000, "'ai', 'available', NULL, 'm', 1 + i % 8, NULL"),
    "waiting for a backend": (40_000, "'ai', 'retryable', 'ollama', '', 0, NULL"),
}
PRODUCER = """
import json, sys, time
from gpuqueue import GPUQueue
gq = GPUQueue(sys.argv[1])

@gq.task(name="noop", queue="work")
def noop(text: str) -> None: ...

noop.enqueue(text="warm")
for line in sys.stdin:
    times, end_s = [], time.monotonic() + float(line)
    while (began_s := time.monotonic()) < end_s:
        noop.enqueue(text="x" * 188)
        times.append(time.monotonic() - began_s)
        time.sleep(float(sys.argv[2]))
    print(json.dumps(times), flush=True)
"""


# It prunes every so many seconds as it is told.
WORKER = """
import sys, threading
from dataclasses import replace
import gpuqueue.worker.maintenance as maintenance
from gpuqueue import Config, GPUQueue, Worker
config = Config.load(None, environ={}, database=sys.argv[1])
gq = GPUQueue(config=replace(config, retention={"completed": None, "cancelled": 86400.0}))
gq.queue("rare")

def obey():
    for line in sys.stdin:
        maintenance.RETENTION_EVERY_S = float(line)

threading.Thread(target=obey, daemon=True).start()
Worker(gq, queues=["rare"]).run()
"""
NEVER_S = 1e9


def fill(store: Store, now_us: int) -> None:
    def work(connection) -> None:  # type: ignore[no-untyped-def]
        for count, values in KINDS.values():
            connection.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
                "INSERT INTO jobs (queue, state, waiting_for, demand_model, demand_class, finished_at, task, enqueued_at, "
                f"scheduled_at, arguments) SELECT {values}, 'noop', :now - 100 * :day + i, :now + :day + i, :payload FROM n",
                {"count": count, "now": now_us, "day": DAY_US, "payload": PAYLOAD},
            )
        connection.execute(
            "INSERT INTO counters SELECT queue, state, count(*) FROM jobs WHERE finished_at IS NOT NULL GROUP BY 1, 2"
        )

    store.engine.writer.run(work)


def test_a_producer_among_a_million_jobs_is_hardly_slower_beside_upkeep(tmp_path: Path) -> None:
    database = str(tmp_path / "queue.db")
    gq = GPUQueue(database)
    store = gq.open_store(patient=True)
    now_us = gq.now_us()
    for queue in ("work", "ai"):
        store.queues.ensure(queue)
    store.backends.lost("ollama", error="away", probe_every_s=1, longest_s=9, now_us=now_us)
    fill(store, now_us)
    store.upkeep.checkpoint()
    times: dict[str, list[float]] = defaultdict(list)
    command = [sys.executable, "-c", PRODUCER, database, str(PACE_S)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as producer, ExitStack() as leaving:
        leaving.callback(producer.kill)

        def enqueue(which: str, rounds: int, meanwhile: Callable[[], object] = lambda: None) -> None:
            assert producer.stdin is not None
            assert producer.stdout is not None
            for _ in range(rounds):
                print(ROUND_S, file=producer.stdin, flush=True)
                meanwhile()
                times[which] += json.loads(producer.stdout.readline())

        enqueue("alone", ROUNDS)
        worker = subprocess.Popen([sys.executable, "-c", WORKER, database], stdin=subprocess.PIPE, text=True)
        leaving.callback(worker.communicate)
        leaving.callback(worker.terminate)
        assert worker.stdin is not None
        print(NEVER_S, file=worker.stdin, flush=True)
        give_up_s = time.monotonic() + 60
        while not gq.workers() and time.monotonic() < give_up_s:
            enqueue("beside a worker that starts", 1)
        for _ in range(ROUNDS):  # in turn, so that the machine's moods fall on both alike
            print(NEVER_S, file=worker.stdin, flush=True)
            enqueue("beside a worker", 1)
            print(0, file=worker.stdin, flush=True)
            enqueue("beside a worker that prunes", 1)
        print(NEVER_S, file=worker.stdin, flush=True)
        enqueue("beside a backend's recovery", 1, lambda: store.backends.answered("ollama", worked=True, now_us=now_us))
        enqueue("beside forgotten demands", 1, lambda: store.jobs.forget_demands_of("m"))
        left = gq.counts()["work"]["cancelled"]
        leaving.close()
    due, _ = KINDS["to be pruned"]
    p99, worst = ({name: pick(found) * 1e3 for name, found in times.items()} for pick in (_p99, max))
    count = sum(count for count, _ in KINDS.values())
    print(f"\nenqueue among {count:,} jobs, {due - left:,} of them pruned meanwhile: p99 / worst in ms")
    for name, value in p99.items():
        print(f"  {name}: {value:.2f} / {worst[name]:.0f}")
    store.close()
    assert left < due
    assert p99["beside a worker that prunes"] <= MOST * p99["beside a worker"]


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]
