"""A program whose main thread forks in the middle of its own fork, at each step of that, as a signal handler may.

Run as `python -m tests.store.forks_in_forks DATABASE`. It has few modules: of those that Python itself brings, some wait for
themselves in a fork within a fork.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
import threading

from gpuqueue import GPUQueue
from gpuqueue.store import forks
from tests.store.interrupts import reached

PATIENCE_S = 60.0


def fork_and_reap() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def main(database: str) -> int:
    gq = GPUQueue(database, discover_plugins=False)
    gq.task(name="noop")(lambda: None)

    def use() -> None:
        gq.enqueue("noop")
        gq.enqueue_many([("noop", {})] * 2)
        gq.counts()

    use()
    for step in itertools.count():
        if not reached(step, fork_and_reap, fork_and_reap):
            print(f"{step} steps")
            return int(step < 10)
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        if thread.is_alive():
            print(f"another thread hangs after step {step}", flush=True)
            faulthandler.dump_traceback()
            return 1
        use()
    raise AssertionError


if __name__ == "__main__":
    forks.LONGEST_WAIT_S = 0.05
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)
