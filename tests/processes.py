"""Owns the programs that tests start: each ends with the block that needs it, whatever comes of the block."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from tests.conftest import fork

LONGEST_S = 300.0  # far beyond what a busy machine needs: only a broken test lets a program run so long


@contextmanager
def started(command: Sequence[Any], *, longest_s: float = LONGEST_S, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a group of its own until the block ends, and kill then what still runs in it.

    After `longest_s` it is killed in any case, so that nobody reads from it, or waits for it, for ever.
    """
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        too_late = threading.Timer(longest_s, kill, [process])
        too_late.daemon = True
        too_late.start()
        try:
            yield process
        finally:
            too_late.cancel()
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a program that has a group of its own, and what it started there."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the second of a group of the dead
        os.killpg(process.pid, signal.SIGKILL)


def read_until(pipe: IO[str] | None, *words: str) -> str:
    """Read lines until all these words have come, and return what was read."""
    assert pipe is not None
    said = ""
    while not all(word in said for word in words):
        line = pipe.readline()
        assert line, f"it ended without {words}:\n{said}"
        said += line
    return said


class Child:
    """A forked process that does one thing and tells what came of it; `before` is done by its parent once it is born."""

    def __init__(self, work: Callable[[], object], *, forking: Callable[[], int] = fork) -> None:
        reading, writing = os.pipe()
        waiting, self._go = os.pipe()
        self.pid = forking()
        if self.pid == 0:
            try:
                os.read(waiting, 1)
                try:
                    told = repr(work())
                except BaseException as error:
                    told = f"{type(error).__name__}: {error}"
                os.write(writing, told.encode())
            finally:
                os._exit(0)
        os.close(writing)
        os.close(waiting)
        self._answer = reading

    def told(self) -> str:
        os.write(self._go, b"x")
        os.close(self._go)
        with os.fdopen(self._answer) as answer:
            found = answer.read()
        assert os.waitpid(self.pid, 0)[1] == 0, "the child hangs"
        return found
