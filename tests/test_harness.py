"""What all tests run within: whatever becomes of a test, it ends, and no program outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuqueue.testing.waiting import wait_until
from tests.harness import PROCESSES
from tests.processes import LONGEST_S, started

pytestmark = pytest.mark.skipif(not PROCESSES.is_dir(), reason="this system does not show which program a run has started")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
TESTS = """
import os, signal, subprocess, sys, threading
import pytest

SLEEPER = "import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); threading.Event().wait()"


def start():
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, FOLDER], stdout=subprocess.PIPE, start_new_session=True)
    process.stdout.readline()
    process.stdout.close()
    return process


def hang():
    threading.Event().wait()


@pytest.fixture(scope="session")
def broken():
    with open(FOLDER + "/tries", "a") as tries:
        tries.write("x")
    start()
    raise RuntimeError("no server")


@pytest.fixture
def hangs_at_its_end():
    yield
    hang()


@pytest.fixture
def hangs_on(hangs_at_its_end):
    yield
    while True:
        try:
            hang()
        except BaseException:
            pass


def test_passes():
    start()

def test_fails():
    start()
    assert False

def test_hangs_once():
    start()
    hang()

def test_breaks_first(broken):
    pass

def test_breaks_again(broken):
    pass

def test_hangs_twice(hangs_at_its_end):
    start()
    hang()

def test_hangs_for_ever(hangs_on):
    start()

def test_dies():
    start()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def command(tmp_path: Path, which: str, *options: str, longest_s: float = LONGEST_S) -> list[str]:
    (tmp_path / "tries").touch()
    (tmp_path / "test_inner.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{TESTS}")
    words = [sys.executable, "-m", "pytest", "-p", "tests.harness", "-p", "no:cacheprovider", "test_inner.py", "-k", which]
    return [*words, "-o", f"longest_s={longest_s}", *options]


def sleepers(tmp_path: Path) -> list[int]:
    """Find the programs that the inner tests started: they name its folder."""
    found = []
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(tmp_path).encode() in words and b"-c" in words:
            found.append(int(folder.name))
    return found


ENDED = (  # what is said of the tests that end by themselves, or when they are interrupted
    "ERROR test_inner.py::test_passes - Failed: left running:",
    "FAILED test_inner.py::test_fails - assert False",
    "ERROR test_inner.py::test_fails - Failed: left running:",
    "started in test_inner.py::test_fails (call)",
    "FAILED test_inner.py::test_hangs_once - Failed: it took longer than 1 s (longest_s)",
    "ERROR test_inner.py::test_breaks_first - RuntimeError: no server",
    "ERROR test_inner.py::test_breaks_again - RuntimeError: no server",
    "FAILED test_inner.py::test_hangs_twice - Failed: it took longer than 1 s (longest_s)",
)


@pytest.mark.parametrize(
    ("which", "options", "told"),
    [
        ("not dies and not for_ever", [], [*ENDED, "left running at the end, and killed:"]),
        ("for_ever", [], ["Timeout (0:00:03)!"]),
        ("dies", [], []),
        ("test", ["-n", "1"], [*ENDED, "worker 'gw0' crashed while running 'test_inner.py::test_hangs_for_ever'", "test_dies"]),
    ],
)
def test_each_test_ends_and_leaves_no_program_behind(tmp_path: Path, which: str, options: list[str], told: list[str]) -> None:
    words = command(tmp_path, which, *options, longest_s=1)
    ran = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONGEST_S)
    said = ran.stdout + ran.stderr
    assert ran.returncode != 0, said
    assert [words for words in told if words not in said] == [], said
    assert len((tmp_path / "tries").read_text()) <= 1, "a session fixture that failed is not tried again"
    # A run that died says nothing, and its janitor notices it within a second.
    wait_until(lambda: not sleepers(tmp_path), "nothing is left")


def test_a_run_that_is_killed_leaves_no_program_behind(tmp_path: Path) -> None:
    words = command(tmp_path, "hangs_once", "-n", "1")
    with started(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: sleepers(tmp_path), "the inner test started a program")
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: not sleepers(tmp_path), "nothing is left")
