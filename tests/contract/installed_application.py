"""An application as a user writes it, run as a script where gpuqueue is installed: one task of each kind, and a worker."""

from __future__ import annotations

import asyncio
import os

from gpuqueue import GPUQueue, Worker, current_job
from gpuqueue.testing.waiting import DEADLINE_S

gq = GPUQueue("application.db")


@gq.task
def plain(number: int) -> list[int]:
    return [number + 1, os.getpid()]


@gq.task
async def awaited(number: int) -> list[int]:
    await asyncio.sleep(0)
    return [number + 2, os.getpid()]


@gq.task(isolate=True)
def isolated(number: int) -> list[int]:
    current_job().emit("from another process")
    return [number + 3, os.getpid()]


async def enqueue_and_wait() -> list[list[int]]:
    jobs = [await task.aenqueue(number=10) for task in (plain, awaited, isolated)]
    results = [await job.aresult(timeout_s=DEADLINE_S) for job in jobs]
    assert [str(piece) async for piece in jobs[2].astream()] == ["from another process"]
    return results


if __name__ == "__main__":
    with Worker(gq):
        (one, here), (two, also_here), (three, elsewhere) = asyncio.run(enqueue_and_wait())
    gq.close()
    assert here == also_here == os.getpid() != elsewhere
    print(one, two, three)
