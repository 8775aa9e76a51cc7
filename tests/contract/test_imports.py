"""A process that only enqueues loads little."""

from __future__ import annotations

import subprocess
import sys

UNWANTED = ("alembic", "pynvml", "httpx", "click", "rich", "gpuqueue.worker", "gpuqueue.devices.nvml", "gpuqueue.executors.ollama")


def test_importing_gpuqueue_loads_none_of_what_only_workers_and_terminals_need() -> None:
    code = f"import sys, gpuqueue; print([name for name in {UNWANTED!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_opening_a_current_database_does_not_load_alembic(tmp_path: object) -> None:
    code = "import sys, gpuqueue; gpuqueue.GPUQueue(sys.argv[1]).pause('default'); print('alembic' in sys.modules)"
    path = f"{tmp_path}/queue.db"
    loaded = [
        subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert loaded == ["True", "False"]
