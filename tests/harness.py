"""Owns that each test ends, and that no program outlives the tests that started it, whatever becomes of them.

Programs are found by a variable that they inherit, where the system shows it: a system without /proc finds none.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from gpuqueue.testing.waiting import DEADLINE_S

RUN = "STARTED_BY_TESTS"  # names the run that started a program; of a run within a test, both
TEST = "PYTEST_CURRENT_TEST"  # the test that did, as pytest says it: "tests/test_x.py::test_y (call)"
PROCESSES = Path("/proc")
LOOK_EVERY_S = 1.0  # after the run that died without a word
END_S = 60.0


@dataclass(frozen=True)
class Program:
    """A program that a run of tests has started, itself or through others."""

    pid: int
    test: str
    command: str

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"process {self.pid}, started in {self.test or 'no test'}: {self.command}"


def processes() -> frozenset[int]:
    """List all processes of this system, where it shows them."""
    return frozenset(int(name) for name in os.listdir(PROCESSES) if name.isdecimal()) if PROCESSES.is_dir() else frozenset()


def programs(run: str, pids: Iterable[int]) -> Iterator[Program]:
    """Find the programs of a run among some processes."""
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile, or is somebody else's
            variables = dict(word.partition("=")[::2] for word in _words(pid, "environ"))
            if f"{variables.get(RUN, '')}/".startswith(f"{run}/"):
                yield Program(pid, variables.get(TEST, ""), " ".join(_words(pid, "cmdline")))


def _words(pid: int, name: str) -> list[str]:
    return (PROCESSES / str(pid) / name).read_bytes().decode(errors="replace").split("\0")


# --- within a test ---


class _Watch:
    """Finds what each test leaves running that it started itself, looking at each new process once."""

    def __init__(self) -> None:
        self._known: frozenset[int] = frozenset()

    def left_by(self, test: str, patience_s: float) -> list[Program]:
        """Return what the test started and does not end; what was told to end may take its time."""
        give_up_s = time.monotonic() + patience_s
        while True:
            there = processes()
            found = [program for program in programs(os.environ[RUN], there - self._known) if program.test == f"{test} (call)"]
            self._known = there - {program.pid for program in found}
            if not found or time.monotonic() > give_up_s:
                return found
            time.sleep(0.01)


_watch = pytest.StashKey[_Watch]()
_errors = pytest.StashKey[int]()


def longest_s(config: pytest.Config) -> float:
    return float(config.getini("longest_s"))


@contextmanager
def _limited(item: pytest.Item) -> Iterator[None]:
    """Interrupt one phase of a test that takes too long, as if it had failed there; end the process if it goes on even then."""
    limit_s = longest_s(item.config)

    def interrupt(number: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(item.config.stash[_errors])
        pytest.fail(f"it took longer than {limit_s:g} s (longest_s)")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    faulthandler.dump_traceback_later(3 * limit_s, exit=True, file=item.config.stash[_errors])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _limited(item):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _limited(item):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Kill what a test left running, and fail it: what its fixtures started is theirs to end, and the run's at the end."""
    try:
        with _limited(item):
            yield
    finally:
        left = item.config.stash[_watch].left_by(item.nodeid, min(longest_s(item.config), DEADLINE_S))
        for program in left:
            program.kill()
    if left:
        pytest.fail("left running:\n" + "\n".join(map(str, left)), pytrace=False)


# --- around a run ---

_janitor = pytest.StashKey[subprocess.Popen[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("longest_s", "how long the setup, the call or the teardown of one test may take", default="600")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_watch] = _Watch()
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        config.stash[_errors] = os.dup(2)  # what is captured dies with the process
    if hasattr(config, "workerinput"):
        return
    without = {name: value for name, value in os.environ.items() if name != RUN}
    os.environ[RUN] = f"{os.environ.get(RUN, '')}/{os.getpid()}".lstrip("/")
    config.stash[_janitor] = subprocess.Popen(
        [sys.executable, __file__, os.environ[RUN]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=without,
        start_new_session=True,  # Ctrl-C is for the tests
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """When all else has ended, kill what is left, and fail the run."""
    try:
        yield
    finally:
        if (janitor := session.config.stash.get(_janitor, None)) is not None:
            killed, _ = janitor.communicate("end", timeout=END_S)
            if killed:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
                print(f"\nleft running at the end, and killed:\n{killed}", file=sys.stderr)


def _main(run: str) -> None:
    """Wait until the run says that it has ended, or until it has died; kill then what is left of it, and name it."""
    parent = os.getppid()
    while os.getppid() == parent and not select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
        pass
    named: set[int] = set()
    while left := list(programs(run, processes() - {parent})):  # what is killed may have started more just before
        for program in left:
            program.kill()
            if program.pid not in named:
                named.add(program.pid)
                with suppress(BrokenPipeError):
                    print(program, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
