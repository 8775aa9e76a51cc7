"""A producer of the torture run: enqueues from two threads until told to stop, forks, is interrupted, and notes each answer."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from gpuqueue import StoreBusy
from gpuqueue.testing import travel
from tests.faults.torture.app import gq
from tests.faults.torture.kinds import EXPECTED, LONGEST_STEP_S, POISON, SOUND
from tests.faults.torture.marks import FOLDER, mark

FOLDER_PATH = Path(os.environ[FOLDER])
STOP = FOLDER_PATH / "stop"
MOST_WAITING = 100
ODD = tuple(name for name in EXPECTED if name not in (*SOUND, *POISON))
LONGEST_INTERRUPT_S = 0.004


class Interrupted(BaseException):
    """What a timer's handler raises, wherever the program is."""


class Producer:
    def __init__(self, name: str, chance: random.Random, lease_s: float) -> None:
        self._name = name
        self._chance = chance
        self._lease_s = lease_s
        self._number = 0

    def request(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Return a task, its arguments, and its options."""
        self._number += 1
        among = self._chance.choices((SOUND, ODD, POISON), (100, 12, 0.5))[0]
        # Few are long enough to be frozen or killed in their middle for sure.
        seconds = self._lease_s * 1.5 if self._chance.random() < 0.01 else self._chance.uniform(0, 0.1)
        options: dict[str, Any] = {"priority": self._chance.choice((0, 0, 1))}
        if self._chance.random() < 0.1:
            options["delay"] = f"{self._chance.randrange(1500)}ms"
        return self._chance.choice(among), {"key": f"{self._name}-{self._number}", "seconds": seconds}, options

    def store(self, enqueue: Callable[..., Any]) -> None:
        task, arguments, options = self.request()
        try:
            job = enqueue(task, arguments, options)
        except StoreBusy:
            mark("refused", key=arguments["key"])
        else:
            mark("stored", job=job.id, key=arguments["key"], task=task)

    def one(self) -> None:
        self.store(lambda task, arguments, options: gq.enqueue(_named(task), arguments, **options))

    def from_a_coroutine(self) -> None:
        self.store(lambda task, arguments, options: asyncio.run(gq.aenqueue(_named(task), arguments, **options)))

    def many(self) -> None:
        requests = [self.request() for _ in range(5)]
        try:
            jobs = gq.enqueue_many([{"task": _named(task), "arguments": data, **options} for task, data, options in requests])
        except StoreBusy:
            for _, data, _ in requests:
                mark("refused", key=data["key"])
            return
        for job, (task, data, _) in zip(jobs, requests, strict=True):
            mark("stored", job=job.id, key=data["key"], task=task)

    def interrupted(self) -> None:
        for _ in range(5):
            self.interrupted_once()

    def interrupted_once(self) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, self._chance.uniform(0, LONGEST_INTERRUPT_S))
            try:
                while True:
                    self.one()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            mark("interrupted")

    def forks(self) -> None:
        pid = os.fork()
        if pid:
            mark("forked", child=pid)
            return
        try:
            mine = Producer(f"{self._name}-{os.getpid()}", random.Random(os.getpid()), self._lease_s)
            for _ in range(3):
                mine.one()
            mark("child", how="done")
        except BaseException as error:
            mark("child", how=repr(error))
        finally:
            os._exit(0)

    def travels(self, around: ExitStack) -> None:
        around.close()
        around.enter_context(travel(gq, gq.now() + timedelta(seconds=self._chance.uniform(-LONGEST_STEP_S, LONGEST_STEP_S))))

    def run(self, kinds: dict[Callable[[], None], float]) -> None:
        while not STOP.exists():
            self._chance.choices(list(kinds), list(kinds.values()))[0]()
            time.sleep(self._chance.uniform(0, 0.03))
            while _waiting() > MOST_WAITING and not STOP.exists():
                time.sleep(0.1)


def _named(task: str) -> str:
    return f"tests.faults.torture.app.{task}"


def _waiting() -> int:
    return sum(counts.get("available", 0) for counts in gq.counts().values())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def main(name: str, seed: int, lease_s: float) -> None:
    signal.signal(signal.SIGALRM, _interrupt)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child that has ended stays as a zombie, which would seem to hang
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    beside = Producer(f"{name}-beside", random.Random(seed + 1), lease_s)
    first = Producer(name, random.Random(seed), lease_s)
    thread = threading.Thread(target=beside.run, args=[{beside.one: 3, beside.many: 1}])
    thread.start()
    with ExitStack() as around:
        first.run(
            {
                first.one: 4,
                first.from_a_coroutine: 1,
                first.many: 1,
                first.interrupted: 2,
                first.forks: 1,
                lambda: first.travels(around): 0.2,
            }
        )
    thread.join()
    mark("producer", how="done")
    gq.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
