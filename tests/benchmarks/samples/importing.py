"""How many milliseconds `import gpuqueue` takes beyond sqlalchemy; run as `python -m tests.benchmarks.samples.importing`."""

from __future__ import annotations

import subprocess
import sys

from tests.benchmarks.samples.clocks import Spent, tell

COUNT = 3
MEASURE = """
import time
import sqlalchemy
began, began_cpu = time.perf_counter(), time.process_time()
import gpuqueue
print((time.perf_counter() - began) * 1e3, (time.process_time() - began_cpu) * 1e3)
"""


def main() -> None:
    found = []
    for _ in range(COUNT):
        ran = subprocess.run([sys.executable, "-c", MEASURE], stdout=subprocess.PIPE, text=True, check=True)
        wall_ms, cpu_ms = map(float, ran.stdout.split())
        found.append(Spent(wall_ms, cpu_ms))
    tell(found)


if __name__ == "__main__":
    main()
