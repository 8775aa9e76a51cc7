"""A program whose main thread is hit by signals in the middle of everything that it does with a queue, beside threads that work.

Run as `python -m tests.store.storm DATABASE SEED HITS HANDLER`. It exits 0 if each step after a hit was possible, other threads
met no error, and exactly what they were told to be stored is in the file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable

from gpuqueue import GPUQueue, UsageError

PATIENCE_S = 60.0
OTHERS = 2
MAIN, HANDLER, PROBE = -1, -2, -3
REFUSAL = "already writing to"


class Limit(Exception):
    """As a library raises that limits a call's time by a signal."""


class Quit(BaseException):
    """As Ctrl-C raises."""


class Storm:
    def __init__(self, database: str, seed: int, kind: str) -> None:
        self.gq = GPUQueue(database, discover_plugins=False)
        self.gq.task(name="noop")(lambda who: None)
        self.random = random.Random(seed)
        self.react: Callable[[], None] = {
            "exception": self.limit,
            "base exception": self.quit,
            "enqueue": lambda: self.enqueue(HANDLER),
            "read": self.read,
        }[kind]
        self.handled = 0
        self.told: Counter[int] = Counter()  # stored, by who stored it
        self.errors: list[BaseException] = []
        self.is_over = threading.Event()
        self.ask, self.answer = threading.Semaphore(0), threading.Semaphore(0)

    def limit(self) -> None:
        raise Limit

    def quit(self) -> None:
        raise Quit

    def enqueue(self, who: int, count: int = 1) -> None:
        if count == 1:
            self.gq.enqueue("noop", {"who": who})
        else:
            self.gq.enqueue_many([("noop", {"who": who})] * count)
        self.told[who] += count

    def read(self) -> None:
        self.gq.counts()
        self.gq.store.changed()
        with self.gq.read():
            pass

    def handle(self, *_: object) -> None:
        self.handled += 1
        try:
            self.react()
        except UsageError as refusal:
            if REFUSAL not in str(refusal):
                self.errors.append(refusal)

    def work(self, who: int) -> None:
        """What another thread does all the time."""
        while not self.is_over.wait(0.0005):
            self.guarded(lambda: self.enqueue(who, count=1 + who % 2))

    def probe(self) -> None:
        """What another thread does after each hit."""
        while True:
            self.ask.acquire()
            self.guarded(lambda: self.enqueue(PROBE))
            self.guarded(self.read)
            self.answer.release()

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.errors.append(error)

    def hit(self) -> None:
        before = self.handled
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, self.random.uniform(0.000_01, 0.002))
                while self.handled == before:
                    self.enqueue(MAIN)
                    self.enqueue(MAIN, count=2)
                    self.read()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (Limit, Quit):
            pass

    def run(self, hits: int) -> int:
        self.enqueue(MAIN)
        self.read()  # a handler may not need a module in the middle of its first import
        signal.signal(signal.SIGALRM, self.handle)
        threads = [threading.Thread(target=self.work, args=(who,), daemon=True) for who in range(OTHERS)]
        for thread in (*threads, threading.Thread(target=self.probe, daemon=True)):
            thread.start()
        for number in range(hits):
            self.hit()
            self.ask.release()
            if not self.answer.acquire(timeout=PATIENCE_S):
                print(f"after hit {number} other threads hang", flush=True)
                faulthandler.dump_traceback()
                return 1
        self.is_over.set()
        for thread in threads:
            thread.join()
        return self.judge()

    def judge(self) -> int:
        stored: Counter[int] = Counter()
        with self.gq.store.engine.lent() as connection:
            for (arguments,) in connection.execute("SELECT arguments FROM jobs"):
                stored[json.loads(arguments)["who"]] += 1
        pool = self.gq.store.engine._read_pool
        pool.quiesce(0.0)
        lent = pool._lent()
        wrong = {who: (self.told[who], stored[who]) for who in (*range(OTHERS), HANDLER, PROBE) if self.told[who] != stored[who]}
        print(f"{self.handled} hits, {sum(stored.values())} jobs, told and stored differ: {wrong}, {len(lent)} lent", flush=True)
        for error in self.errors[:5]:
            print(f"another thread met {error!r}", flush=True)
        return int(bool(wrong or self.errors or lent))


if __name__ == "__main__":
    database, seed, hits, kind = sys.argv[1:]
    faulthandler.enable()
    code = Storm(database, int(seed), kind).run(int(hits))
    sys.stdout.flush()
    os._exit(code)
