"""Owns functions that tests run in processes of their own; a child imports this module by its name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuqueue import Discard, GPUQueue, Retry, Snooze, current_job


class Odd(LookupError):
    """An error of the application's own."""


class Mute(Exception):
    """An error whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def where(**arguments: Any) -> dict[str, Any]:
    """Tell what this process is, and what it was given."""
    shown = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    return {"pid": os.getpid(), "parent": os.getppid(), "environment": shown, "arguments": arguments}


def speak() -> str:
    job = current_job()
    job.progress(0.5, note="half")
    job.log(f"attempt {job.attempt} of {job.max_attempts} of {job.task} in {job.queue}")
    job.emit("once ")
    job.emit("upon a time")
    return f"{job.id} {job.deadline is not None}"


async def speak_later() -> int:
    await asyncio.sleep(0)
    current_job().emit("later")
    return current_job().id


def fail(kind: str) -> Any:
    """End in one of many ways."""
    if kind == "error":
        raise Odd("no such thing")
    if kind == "retry":
        raise Retry("1h", reason="not yet")
    if kind == "snooze":
        raise Snooze("1h", reason="closed")
    if kind == "discard":
        raise Discard("obsolete", code="gone")
    if kind == "exit":
        os._exit(3)
    if kind == "system exit":
        sys.exit("good bye")
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "no text":
        raise Mute
    if kind == "half a character":
        raise Odd("a name \udc80 of a file")
    if kind == "long text":
        raise Odd("x" * 18_000_000)
    if kind == "discard with an error":
        raise Discard(LookupError("obsolete"))  # type: ignore[arg-type]
    if kind == "deep":
        return _nested(100_000)
    if kind == "large":
        return "x" * 20_000_000
    return {1, 2, 3}  # which is not JSON


def _nested(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def fork(file: str, kind: str) -> int:
    """Start a helper that shares everything that this process has open, and then end, or return."""
    helper = _forked(lambda: time.sleep(600))
    tell(file, os.getpid(), helper)
    return os.getpid() if kind == "return" else fail(kind)


def _forked(work: Callable[[], object]) -> int:
    helper = os.fork()
    if helper == 0:
        work()
        os._exit(0)
    return helper


_may_speak, _has_spoken = threading.Event(), threading.Event()


def leave_a_thread() -> int:
    """End, and leave a thread that speaks of this job later."""
    job = current_job()

    def speak() -> None:
        _may_speak.wait()
        job.log("late")
        job.progress(0.1, note="late")
        _has_spoken.set()

    threading.Thread(target=speak, daemon=True).start()
    return os.getpid()


def let_the_thread_speak() -> int:
    _may_speak.set()
    _has_spoken.wait()
    return os.getpid()


def hang(file: str, how: str) -> None:
    """Write who runs here into a file, and then never end."""
    children = []
    if how == "ignore":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how == "start another":
        children = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid]
    memory = b"\1" * (2 * 10**9 if how == "allocate" else 0)  # written to, so that the system has to give it
    tell(file, os.getpid(), *children)
    if how == "hold the interpreter":
        ctypes.PyDLL(None).sleep(600)  # a C call that keeps the interpreter's lock
    while True:
        try:
            time.sleep(600)
        except Exception:
            del memory


def tidy_up(file: str) -> None:
    """Wait, and say in the file how it was ended."""
    tell(file, os.getpid())
    try:
        time.sleep(600)
    finally:
        Path(f"{file}.end").write_text(f"cancelled: {current_job().cancelled}")


def remember(size: int) -> int:
    """Take memory for a moment, and tell which process did."""
    memory = b"\1" * size
    return os.getpid() if memory else 0


def tell(file: str, *numbers: int) -> None:
    unfinished = Path(f"{file}.unfinished")
    unfinished.write_text(" ".join(map(str, numbers)))
    unfinished.rename(file)


def close_everything() -> None:
    """Close what this process has open, as a library that makes a daemon does, and live on."""
    os.closerange(3, 256)
    time.sleep(600)


def wait_for(database: str, task: str, job_id: int) -> Any:
    """Wait for a job of a plain task."""
    gq = GPUQueue(database, discover_plugins=False)
    gq.task(name=task)(where)
    return gq.job(job_id).result()


def speak_on(times: int, fails: bool = False) -> int:
    """Emit so many words, and fail after them when it is told to."""
    for number in range(times):
        current_job().emit(f"{number} ")
        time.sleep(0.001 if times < 100 else 0.01)
    if fails:
        raise Odd("no more")
    return times
