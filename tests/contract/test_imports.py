"""What a web process that only enqueues does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import LONGEST_S

HEAVY = ("alembic", "pynvml", "httpx", "click", "rich", "gpuqueue.worker", "gpuqueue.cli", "gpuqueue.simulators")
ENGINES = ("gpuqueue.store.sqlite",)


def loaded_after(code: str, of: tuple[str, ...] = HEAVY) -> set[str]:
    code += f"\nimport sys\nprint(*(name for name in {of!r} if name in sys.modules))"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONGEST_S).stdout.split())


def test_importing_gpuqueue_loads_neither_a_worker_nor_what_only_others_need() -> None:
    assert loaded_after("import gpuqueue") == set()
    assert loaded_after("import gpuqueue", of=ENGINES) == set()


def test_enqueueing_and_asking_why_a_job_waits_load_no_worker_either(tmp_path: Path) -> None:
    make = f"from gpuqueue import GPUQueue\ngq = GPUQueue({str(tmp_path / 'jobs.db')!r}, discover_plugins=False)\n"
    subprocess.run([sys.executable, "-c", f"{make}gq.counts()\ngq.close()"], check=True, timeout=LONGEST_S)
    use = "job = gq.task(name='t')(lambda: 1).enqueue()\nstr(job.explain())\ngq.counts()\ngq.holds()\njob.cancel()\ngq.close()"
    assert loaded_after(make + use) == set()


def test_the_worker_is_found_at_first_use() -> None:
    assert "gpuqueue.worker" in loaded_after("import gpuqueue; gpuqueue.Worker")
