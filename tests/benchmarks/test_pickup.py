"""How soon an idle worker in another process starts a job, and what it costs to be idle.

The floor is the least that can be written: a plain insert and a raw datagram, whose receiver claims the row.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles

import pytest

from gpuqueue import GPUQueue
from tests.benchmarks.floor import Floor
from tests.history import check_rows
from tests.processes import started

pytestmark = pytest.mark.benchmark
SAMPLES = 300
PAUSE_S = 0.01  # between two jobs, so that the worker is idle again
IDLE_S = 60.0

APP = """
import time
from gpuqueue import GPUQueue
gq = GPUQueue({database!r})

@gq.task(name="stamp", queue="work")
def stamp() -> int:
    return time.time_ns()
"""
RECEIVER = """
import socket, sys, time
from pathlib import Path
from tests.benchmarks.floor import Floor
heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
heard.bind(sys.argv[1])
floor = Floor(Path(sys.argv[2]), synchronous="normal")
print("ready", flush=True)
while (message := heard.recv(64)) != b"end":
    row = floor.claim()
    started_ns = time.time_ns()
    floor.acknowledge(row)
    print(started_ns - int(message), flush=True)
"""


def raw_delays(folder: Path) -> list[float]:
    path = str(folder / "raw")
    command = [sys.executable, "-c", RECEIVER, path, str(folder / "raw.db")]
    with started(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        floor = Floor(folder / "raw.db", synchronous="normal")
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        delays = []
        for _ in range(SAMPLES):
            time.sleep(PAUSE_S)
            began_ns = time.time_ns()
            floor.insert()
            sender.sendto(str(began_ns).encode(), path)
            delays.append(int(receiver.stdout.readline()) / 1e6)
        sender.sendto(b"end", path)
        sender.close()
        floor.connection.close()
    return delays


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_worker_starts_a_job_at_once_and_costs_nothing(tmp_path: Path) -> None:
    database = str(tmp_path / "queue.db")
    (tmp_path / "app.py").write_text(APP.format(database=database))
    gq = GPUQueue(database)

    @gq.task(name="stamp", queue="work")
    def stamp() -> int: ...

    command = [sys.executable, "-c", "from app import gq; from gpuqueue import Worker; Worker(gq).run()"]
    with subprocess.Popen(command, cwd=tmp_path) as worker:
        try:
            for _ in range(20):
                stamp.enqueue().result(timeout_s=30)
            raw = raw_delays(tmp_path)
            delays = []
            for _ in range(SAMPLES):
                time.sleep(PAUSE_S)
                began_ns = time.time_ns()
                delays.append((stamp.enqueue().result(timeout_s=10) - began_ns) / 1e6)
            before_s = cpu_s(worker.pid)
            time.sleep(IDLE_S)
            idle = (cpu_s(worker.pid) - before_s) / IDLE_S
        finally:
            worker.terminate()
    with closing(sqlite3.connect(database)) as connection:
        check_rows(connection)
    ours_p99, raw_p99 = quantiles(delays, n=100)[98], quantiles(raw, n=100)[98]
    print(
        f"\nenqueue to start: median {median(delays):.3f} ms, p99 {ours_p99:.2f} ms; "
        f"plain insert, datagram and claim: median {median(raw):.3f} ms, p99 {raw_p99:.2f} ms; idle CPU {idle:.2%}"
    )
    assert median(delays) <= 3 * median(raw)
    assert ours_p99 <= raw_p99 + 2.0
    assert idle < 0.005
