"""Counts the calls inside the package, the files they lie in and the SQL statements, of fixed examples on a real file.

Run as `python -m tests.benchmarks.steps [--list] [NAME …]`.
"""

from __future__ import annotations

import argparse
import sqlite3
import sqlite3.dbapi2
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import gpuqueue
from gpuqueue import Config, GPUQueue, Worker
from gpuqueue.plugins import Reading, RegisterDevicesDetails, hookimpl
from gpuqueue.testing import wait_until

PACKAGE = f"{Path(gpuqueue.__file__).parent}/"
# Loops within a function, which Python 3.12 no longer runs as calls.
INNER_LOOPS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
REPEATS, WARM_UP = 51, 15
LONG_S = 0.025  # of a job so long that the next one is claimed only when it has ended
SCENARIO = """
database = "queue.db"

[gpu]
budget = "5GB"

[queues.ai-realtime]
gpu = true
concurrency = 1
backend = "none"

[queues.ai-batch]
gpu = true
concurrency = 1
yields_to = ["ai-realtime"]
backend = "none"
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One call, or one SQL statement, which lies in no file."""

    what: str
    file: str = ""


Steps = list[Step]


@dataclass
class Recorder:
    """Keeps what happens while a thread of this process is watched, in its order."""

    steps: Steps = field(default_factory=list)

    def called(self, frame: FrameType, event: str, _arg: Any) -> None:
        """The function for `sys.setprofile`."""
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in INNER_LOOPS:
            self.steps.append(Step(code.co_qualname, code.co_filename.removeprefix(PACKAGE)))

    def executed(self, statement: str) -> None:
        # The profiler is there in the threads that are watched, and a comment stands for what a trigger does.
        if sys.getprofile() is not None and not statement.startswith("--"):
            self.steps.append(Step(" ".join(statement.split())))

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace the connections that are made inside the block."""
        connect = sqlite3.connect

        def traced(*args: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **options)
            connection.set_trace_callback(self.executed)
            return connection

        with mock.patch.object(sqlite3, "connect", traced), mock.patch.object(sqlite3.dbapi2, "connect", traced):
            yield

    @contextmanager
    def watching(self, *, new_threads: bool = False) -> Iterator[None]:
        """Watch this thread inside the block, and those that it starts if `new_threads`."""
        if new_threads:
            threading.setprofile(self.called)
        sys.setprofile(self.called)
        try:
            yield
        finally:
            sys.setprofile(None)
            if new_threads:
                threading.setprofile(None)

    def of(self, work: Callable[[], object]) -> Steps:
        """Return the steps of one call."""
        self.steps.clear()
        with self.watching():
            work()
        return list(self.steps)


# --- the examples: each returns the steps of every repetition ---


def enqueue(folder: Path, recorder: Recorder) -> list[Steps]:
    """A warm enqueue of a plain task."""
    gq = GPUQueue(config=Config.load(None, environ={}, database=str(folder / "queue.db")), discover_plugins=False)

    @gq.task(name="noop", queue="work")
    def noop(text: str) -> None: ...

    for _ in range(WARM_UP):
        noop.enqueue(text="x")
    return [recorder.of(lambda: noop.enqueue(text="x")) for _ in range(REPEATS)]


def turn(folder: Path, recorder: Recorder) -> list[Steps]:
    """From the return of a task's function, over the writing of its outcome and the next claim, to the next job's function."""
    return _turns(folder, recorder, job_s=LONG_S)


def short_turn(folder: Path, recorder: Recorder) -> list[Steps]:
    """The same between short jobs, which are claimed and written many at once: mostly nothing is."""
    return _turns(folder, recorder, job_s=0.0)


def explain(folder: Path, recorder: Recorder) -> list[Steps]:
    """An explanation of a job of a GPU queue that yields to a running one."""
    file = folder / "gpuqueue.toml"
    file.write_text(SCENARIO, encoding="utf-8")
    gq = GPUQueue(config=Config.load(file, environ={}), plugins=[Cards()], discover_plugins=False)
    is_reached, may_end = threading.Event(), threading.Event()

    @gq.task(name="revise", vram="1GB")
    def revise() -> None:
        is_reached.set()
        may_end.wait()

    revise.using(queue="ai-realtime").enqueue()
    with Worker(gq, threads=1):
        try:
            wait_until(is_reached.is_set, "the realtime job runs")
            waiting = revise.using(queue="ai-batch").enqueue()
            wait_until(lambda: waiting.refresh().record.demand_bytes, "the worker has asked what the batch job needs")
            wait_until(lambda: "yielding" in str(gq.explain(waiting.id)), "the batch job yields")
            found = [recorder.of(lambda: gq.explain(waiting.id)) for _ in range(WARM_UP + REPEATS)]
        finally:
            may_end.set()
    return found[WARM_UP:]


EXAMPLES: Mapping[str, Callable[[Path, Recorder], list[Steps]]] = {
    "enqueue": enqueue,
    "turn": turn,
    "short-turn": short_turn,
    "explain": explain,
}


class Still:
    """A card that is there on every machine."""

    def read(self) -> Reading:
        return Reading(at=datetime.now(UTC), name="a still card", total_bytes=8 * 10**9, free_bytes=7 * 10**9)


class Cards:
    @hookimpl
    def register_devices(self, details: RegisterDevicesDetails) -> Mapping[str, Still]:
        return {device.name: Still() for device in details.devices}


def _turns(folder: Path, recorder: Recorder, *, job_s: float) -> list[Steps]:
    gq = GPUQueue(config=Config.load(None, environ={}, database=str(folder / "queue.db")), discover_plugins=False)
    marks: list[tuple[int, int]] = []  # in the recorder's steps, for each job: where its function begins and ends

    @gq.task(name="work", queue="work")
    def work() -> None:
        began = len(recorder.steps)
        if job_s:
            time.sleep(job_s)
        marks.append((began, len(recorder.steps)))

    gq.enqueue_many([(work, {})] * (WARM_UP + REPEATS + 1))
    recorder.steps.clear()
    with recorder.watching(new_threads=True):
        Worker(gq, threads=1, burst=True).run()
    ends, begins = [end for _, end in marks], [begin for begin, _ in marks[1:]]
    return [recorder.steps[end:begin] for end, begin in zip(ends, begins, strict=False)][WARM_UP:]


# --- the command ---


@dataclass(frozen=True, slots=True)
class Count:
    """What a repetition took."""

    calls: int
    files: int
    statements: int

    @classmethod
    def of(cls, steps: Steps) -> Count:
        files = [step.file for step in steps if step.file]
        return cls(len(files), len(set(files)), len(steps) - len(files))


def typical(name: str) -> tuple[Steps, list[Count]]:
    """Run an example; returns the steps of its median repetition, and what each took."""
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder, recorder.tracing():
        found = EXAMPLES[name](Path(folder), recorder)
    ordered = sorted(found, key=lambda steps: Count.of(steps).calls)
    return ordered[len(ordered) // 2], [Count.of(steps) for steps in found]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.steps", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EXAMPLES)}; all when none is given")
    parser.add_argument("--list", action="store_true", help="print the steps in their order")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(EXAMPLES):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for name in asked.names or EXAMPLES:
        steps, counts = typical(name)
        count = Count.of(steps)
        others = len(counts) - counts.count(count)
        varies = f"  ({others} of {len(counts)} differ)" if others else ""
        print(f"{name:<10}  {count.calls:>3} calls  {count.files:>2} files  {count.statements:>2} statements{varies}", flush=True)
        if asked.list:
            print(*(f"    {step.file}:{step.what}" if step.file else f"    — {step.what:.110}" for step in steps), sep="\n")


if __name__ == "__main__":
    main()
