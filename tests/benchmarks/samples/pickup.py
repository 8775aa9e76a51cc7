"""How many times as long an idle worker in another process takes to start a job as the receiver of a raw datagram.

Run as `python -m tests.benchmarks.samples.pickup`.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

from gpuqueue import Config, GPUQueue, Task, Worker
from gpuqueue.testing import wait_until
from tests.benchmarks.floor import Floor

COUNT, WARM_UP = 120, 20
PAUSE_S = 0.01  # between two jobs, so that both are idle again


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        gq, stamp = _queue(folder)
        gq.counts()  # the file is there before another process opens it
        with (
            _started("worker", folder) as worker,
            _started("receiver", folder) as receiver,
            closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sender,
        ):
            try:
                heard = receiver.stdout
                assert heard is not None
                heard.readline()
                wait_until(gq.workers, "the worker runs")
                floor = Floor(Path(folder) / "raw.db", synchronous="normal")

                def raw() -> int:
                    floor.insert()
                    sender.sendto(b"go", _address(folder))
                    return int(heard.readline())

                found = [
                    (_delay_ns(lambda: stamp.enqueue().result(timeout_s=30)), _delay_ns(raw)) for _ in range(WARM_UP + COUNT)
                ][WARM_UP:]
            finally:
                worker.terminate()
                receiver.terminate()
        print("wall", median(ours for ours, _ in found) / median(raw for _, raw in found))


def work(folder: str) -> None:
    """Be the worker."""
    Worker(_queue(folder)[0]).run()


def receive(folder: str) -> None:
    """Be the receiver."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(_address(folder))
    floor = Floor(Path(folder) / "raw.db", synchronous="normal")
    print("ready", flush=True)
    while heard.recv(64):
        row = floor.claim()
        started_ns = time.time_ns()
        assert row is not None
        floor.acknowledge(row)
        print(started_ns, flush=True)


def _queue(folder: str) -> tuple[GPUQueue, Task[[], int]]:
    gq = GPUQueue(config=Config.load(None, environ={}, database=f"{folder}/queue.db"), discover_plugins=False)

    @gq.task(name="stamp", queue="work")
    def stamp() -> int:
        return time.time_ns()

    return gq, stamp


def _delay_ns(start: Callable[[], int]) -> int:
    time.sleep(PAUSE_S)
    began_ns = time.time_ns()
    return start() - began_ns


def _address(folder: str) -> str:
    return f"{folder}/raw"


def _started(role: str, folder: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", __spec__.name, role, folder], stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", folder]:
            work(folder)
        case ["receiver", folder]:
            receive(folder)
        case _:
            main()
