"""How many times as long a worker takes for a job as a plain loop; run as `python -m tests.benchmarks.samples.drain THREADS`."""

from __future__ import annotations

import sys
import tempfile
from itertools import count
from pathlib import Path

from gpuqueue import Config, GPUQueue, Worker
from tests.benchmarks.floor import Floor
from tests.benchmarks.samples.clocks import Spent, between, each, now, tell

JOBS, ROUNDS = 3000, 5


def main(threads: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        gq = GPUQueue(config=Config.load(None, environ={}, database=f"{folder}/ours.db"), discover_plugins=False)
        numbers, marks = count(1), list[Spent]()

        # From the first job to the last: a worker's start and end are not what a long-running one pays.
        @gq.task(name="noop", queue="work")
        def noop(text: str) -> None:
            if next(numbers) % JOBS <= 1:
                marks.append(now())

        def ours() -> Spent:
            marks.clear()
            gq.enqueue_many([(noop, {"text": "x" * 188})] * JOBS)
            Worker(gq, threads=int(threads), burst=True).run()
            began, ended = marks
            return between(began, ended)

        floor = Floor(Path(folder) / "floor.db", synchronous="normal")

        def plain() -> Spent:
            with floor.connection:
                floor.connection.execute("BEGIN")
                each(floor.insert, JOBS)
            return each(floor.claim_and_acknowledge, JOBS)

        tell([ours().over(plain()) for _ in range(ROUNDS)])


if __name__ == "__main__":
    main(*sys.argv[1:])
