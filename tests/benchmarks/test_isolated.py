"""What a process of its own costs a job: a new one, and one that has run a job before."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest

from gpuqueue import GPUQueue, Worker
from tests.executors import isolated_functions

pytestmark = pytest.mark.benchmark


def test_a_process_that_is_used_again_costs_a_small_part_of_a_new_one(
    make_queue: Callable[..., GPUQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    gq = make_queue()
    gq.task(name="isolated", isolate=True)(isolated_functions.where)
    gq.task(name="plain")(isolated_functions.where)

    def seconds(task: str) -> float:
        began_s = time.perf_counter()
        gq.enqueue(task).result(timeout_s=60)
        return time.perf_counter() - began_s

    with Worker(gq, threads=1):
        in_thread_s = median(seconds("plain") for _ in range(30))
        seconds("isolated")
        again_s = median(seconds("isolated") for _ in range(30))
        monkeypatch.setattr("gpuqueue.executors.processes.JOBS_PER_CHILD", 0)
        anew_s = median(seconds("isolated") for _ in range(10))
    print(f"\na job in a thread {in_thread_s * 1e3:.2f} ms, in a used process {again_s * 1e3:.2f} ms, new {anew_s * 1e3:.0f} ms")
    assert again_s <= anew_s / 10
