"""Owns the end of a worker's child processes when the worker cannot end them: it was killed, or stopped for too long.

A script of its own, which imports nothing of gpuqueue, so that it is small and nothing in it can hang. Its standard input
comes from the worker, a line for each change: `run GROUP SECONDS` (this process group runs a job, and must not outlive so
long a silence), `idle GROUP`, `gone GROUP`, and `alive`.
"""

import os
import select
import signal
import time
from contextlib import suppress


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, float] = {}  # how long each may go on in silence
    received = b""
    heard_s = time.monotonic()
    while True:
        silent_s = time.monotonic() - heard_s
        for group in [group for group, limit_s in groups.items() if silent_s >= limit_s]:
            kill(group)
            del groups[group]
        left_s = min((limit_s - silent_s for limit_s in groups.values()), default=3600.0)
        ready, _, _ = select.select([0], [], [], max(0.0, min(left_s, 3600.0)))
        if not ready:
            continue
        piece = os.read(0, 65536)
        if not piece:  # the worker is no more
            for group in groups:
                kill(group)
            return
        heard_s = time.monotonic()
        *lines, received = (received + piece).split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            if word == b"run":
                groups[int(numbers[0])] = float(numbers[1])
            elif word == b"idle":
                groups[int(numbers[0])] = float("inf")
            elif word == b"gone":
                groups.pop(int(numbers[0]), None)


def kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
