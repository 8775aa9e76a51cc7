"""What `import gpuqueue` costs beyond `import sqlalchemy`."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median

import pytest

pytestmark = pytest.mark.benchmark
MEASURE = """
import time
began_s = time.perf_counter()
import sqlalchemy
between_s = time.perf_counter()
import gpuqueue
print(between_s - began_s, time.perf_counter() - between_s)
"""


def test_importing_costs_little_beyond_sqlalchemy() -> None:
    # As installed: the modules are compiled once, not at every start.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", "import gpuqueue"], env=environment, check=True)
    runs = []
    for _ in range(15):
        ran = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
        runs.append([float(word) for word in ran.stdout.split()])
    ours_s = median(ours for _, ours in runs)
    print(f"\nimport gpuqueue: {ours_s * 1e3:.0f} ms beyond sqlalchemy's {median(base for base, _ in runs) * 1e3:.0f} ms")
    assert ours_s <= 0.06
