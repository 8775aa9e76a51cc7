"""The application of the torture run: each task marks when it began, and when it ran to its end."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from gpuqueue import Discard, GPUQueue, Retry, Snooze, current_job
from gpuqueue.contract.current_job import current_lease
from gpuqueue.executors import child
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import install
from gpuqueue.testing import travel
from tests.faults.torture.kinds import LONGEST_STEP_S, STEPS
from tests.faults.torture.marks import FOLDER, mark

gq = GPUQueue.from_config(Path(os.environ[FOLDER]) / "gpuqueue.toml", discover_plugins=False)


@contextmanager
def marked() -> Iterator[None]:
    lease = current_lease()
    assert lease is not None
    run = {"job": lease.job_id, "lease": lease.lease, "task": lease.task, "queue": lease.queue, "in_child": child.is_child}
    mark("runs", what="began", **run)
    yield
    mark("runs", what="ended", **run)


# --- sound tasks: each completes, whatever happens beside it ---


@gq.task(queue="work", max_attempts=1)
def plain(key: str, seconds: float) -> str:
    with marked():
        current_job().emit(f"{key} ")
        current_job().progress(0.5, note="half")
        time.sleep(seconds)
        current_job().log("done")
    return key


@gq.task(queue="work", max_attempts=1)
async def asynchronous(key: str, seconds: float) -> str:
    with marked():
        current_job().emit(f"{key} ")
        await asyncio.sleep(seconds)
    return key


@gq.task(queue="narrow", max_attempts=1)
def narrow(key: str, seconds: float) -> str:
    with marked():
        time.sleep(seconds)
    return key


@gq.task(queue="isolated", max_attempts=1, isolate=True)
def isolated(key: str, seconds: float) -> str:
    with marked():
        current_job().progress(0.5)
        time.sleep(seconds)
    return key


@gq.task(queue="card", max_attempts=1, vram="2GB")
def on_card(key: str, seconds: float) -> str:
    with marked():
        time.sleep(seconds)
    return key


@gq.task(queue="work", max_attempts=2)
def again(key: str, seconds: float) -> str:
    if current_job().attempt == 1:
        raise Retry("100ms")
    with marked():
        time.sleep(seconds)
    return key


@gq.task(queue="work", max_attempts=1)
def snoozes(key: str, seconds: float) -> str:
    path = os.path.join(os.environ[FOLDER], f"snoozed-{key}")
    if not os.path.exists(path):
        open(path, "w").close()
        raise Snooze("100ms")
    with marked():
        time.sleep(seconds)
    return key


# --- odd tasks: each ends as EXPECTED says ---


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@gq.task(queue="odd", max_attempts=1)
def wordless(key: str, seconds: float) -> None:
    with marked():
        raise Wordless


@gq.task(queue="odd", max_attempts=1)
async def wordless_on_the_loop(key: str, seconds: float) -> None:
    with marked():
        raise Wordless


@gq.task(queue="odd", max_attempts=1)
def half_a_character(key: str, seconds: float) -> str:
    with marked():
        current_job().log("\ud800")
        current_job().emit("\udfff")
        current_job().progress(0.1, note="\ud83d")
    return "\ud83d"


@gq.task(queue="odd", max_attempts=1, isolate=True)
def half_a_reason(key: str, seconds: float) -> None:
    with marked():
        raise Discard("\udc80", code="\udc81")


@gq.task(queue="odd", max_attempts=1)
def talks_much(key: str, seconds: float) -> None:
    with marked():
        for _ in range(20):
            current_job().emit("x" * 100_000)
        current_job().log("y" * 1_000_000)


@gq.task(queue="odd", max_attempts=1)
def no_json(key: str, seconds: float) -> object:
    with marked():
        pass
    return object()


@gq.task(queue="odd", max_attempts=1)
async def leaves_the_loop(key: str, seconds: float) -> None:
    with marked():
        raise SystemExit(3)


@gq.task(queue="odd", max_attempts=1)
async def stops_the_loop(key: str, seconds: float) -> None:
    with marked():
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0.01)


@gq.task(queue="odd", max_attempts=1)
def poison(key: str, seconds: float) -> None:
    with marked():
        os._exit(9)


@gq.task(queue="odd", max_attempts=1)
async def poison_on_the_loop(key: str, seconds: float) -> None:
    with marked():
        os._exit(9)


@gq.task(queue="card", max_attempts=1, vram="2GB")
def poison_on_card(key: str, seconds: float) -> None:
    with marked():
        os._exit(9)


@gq.task(queue="odd", max_attempts=1, isolate=True)
def poison_isolated(key: str, seconds: float) -> None:
    with marked():
        os._exit(9)


def _step_clock(seed: int) -> None:
    chance = random.Random(seed)
    while True:
        time.sleep(chance.uniform(0.5, 3))
        with travel(gq, gq.now() + timedelta(seconds=chance.uniform(-LONGEST_STEP_S, LONGEST_STEP_S))):
            time.sleep(chance.uniform(0.5, 3))


install(SimulatedCard())
if STEPS in os.environ and not child.is_child:
    threading.Thread(target=_step_clock, args=[int(os.environ[STEPS])], daemon=True).start()
