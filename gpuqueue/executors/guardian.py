"""Kills a worker's child processes when the worker cannot: it was killed, or suspended for too long.

A separate script that imports nothing from gpuqueue, to be small and unable to hang. The worker writes to its standard input,
one line per change: `run GROUP SECONDS` (this process group runs a job; kill it after this long without a line), `idle
GROUP`, `gone GROUP`, and `alive`. A group that is about to be killed is written to the standard output.
"""

import os
import select
import signal
import time
from contextlib import suppress


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, float] = {}  # how long each may run without a line from the worker
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
        if not piece:  # the worker has ended
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
    with suppress(OSError):  # the worker is gone
        os.write(1, b"%d\n" % group)  # first: a worker that sees the death finds its cause
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
