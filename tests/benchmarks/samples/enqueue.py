"""How many times as long an enqueue takes as a plain insert; run as `python -m tests.benchmarks.samples.enqueue normal|full`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from gpuqueue import Config, GPUQueue
from tests.benchmarks.floor import Floor
from tests.benchmarks.samples.clocks import each, tell

# Rounds so short that most of them are not interrupted by other work on the machine.
COUNTS = {"normal": 10, "full": 1}
ROUNDS = {"normal": 1500, "full": 200}
FILLED = 3000  # until both logs have reached the size at which they begin anew
TEXT = "x" * 188


def main(synchronous: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Config.load(None, environ={}, database=f"{folder}/ours.db", synchronous=synchronous)
        gq = GPUQueue(config=config, discover_plugins=False)

        @gq.task(name="noop", queue="work")
        def noop(text: str) -> None: ...

        def ours() -> None:
            noop.enqueue(text=TEXT)

        floor = Floor(Path(folder) / "floor.db", synchronous=synchronous)
        gq.enqueue_many([(noop, {"text": TEXT})] * FILLED)
        with floor.connection:
            floor.connection.execute("BEGIN")
            each(floor.insert, FILLED)
        count = COUNTS[synchronous]
        each(ours, 10 * count)
        found = [each(ours, count).over(each(floor.insert, count)) for _ in range(ROUNDS[synchronous])]
        tell(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
