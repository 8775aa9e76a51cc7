"""The liveness file: death is proven only when the process is dead, and its slots survive being killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuqueue.store.liveness import Liveness, Silences, forget, path_of, proven_dead
from tests.processes import started

WORKER = """
import os, sys
from pathlib import Path
from gpuqueue.store.liveness import Liveness
liveness = Liveness(Path(sys.argv[1]), "w", slots=4)
liveness.executes(0, 11)
liveness.executes(2, 2**40)
liveness.executes(3, 5)
liveness.executes(3, 0)
print("ready", flush=True)
sys.stdin.read()
liveness.close()
"""


@contextmanager
def worker(folder: Path, code: str = WORKER) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a worker until the block ends; yields it with its first line."""
    command = [sys.executable, "-c", code, str(folder)]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline()


def test_a_living_worker_is_not_dead_and_a_killed_one_leaves_what_it_executed(tmp_path: Path) -> None:
    with worker(tmp_path) as (process, _):
        assert proven_dead(tmp_path, "w") is None
        process.send_signal(signal.SIGSTOP)
        assert proven_dead(tmp_path, "w") is None, "a stopped process is not dead"
    assert proven_dead(tmp_path, "w") == {11, 2**40}
    assert proven_dead(tmp_path, "w") == {11, 2**40}, "looking changes nothing"
    forget(tmp_path, "w")
    forget(tmp_path, "w")
    assert proven_dead(tmp_path, "w") is None


def test_a_worker_that_ends_in_good_order_leaves_no_file(tmp_path: Path) -> None:
    with worker(tmp_path) as (process, _):
        process.communicate()
    assert process.returncode == 0
    assert not path_of(tmp_path, "w").exists()


def test_a_worker_whose_file_cannot_be_seen_is_not_proven_dead(tmp_path: Path) -> None:
    assert proven_dead(tmp_path / "another host's", "w") is None


def test_a_process_sees_its_own_life(tmp_path: Path) -> None:
    liveness = Liveness(tmp_path, "me", slots=2)
    assert proven_dead(tmp_path, "me") is None
    liveness.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_started_by_a_job_does_not_keep_its_dead_worker_alive(tmp_path: Path) -> None:
    code = WORKER.replace(
        'print("ready", flush=True)',
        'import subprocess; child = subprocess.Popen(["sleep", "1000"]); print(child.pid, flush=True)',
    )
    with worker(tmp_path, code) as (process, child):
        process.kill()
        process.wait()
        assert proven_dead(tmp_path, "w") == {11, 2**40}
        os.kill(int(child), 0)  # which still runs


class Looking:
    """An observer of one worker with a lease of nine seconds, and the monotonic clock it looks by."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.silences = Silences(lambda: self.now_s)

    def after(self, seconds: float, sign: int) -> float:
        self.now_s += seconds
        return self.silences.silent_s("w", sign, lease_s=9.0)


def test_a_worker_is_silent_while_its_row_stays_the_same() -> None:
    looking = Looking()
    assert looking.after(0, sign=5) == 0, "what it said before is not known"
    assert [looking.after(1, sign=5) for _ in range(3)] == [1, 2, 3]
    assert looking.after(1, sign=4) == 0, "any other sign is a sign, also an earlier time"
    assert looking.after(1, sign=4) == 1


def test_an_observer_that_was_stopped_itself_heard_no_silence_meanwhile() -> None:
    looking = Looking()
    looking.after(0, sign=5)
    assert looking.after(3600, sign=5) == 3
    assert looking.after(0, sign=6) == 0


def test_a_worker_that_is_gone_is_forgotten() -> None:
    looking = Looking()
    looking.after(0, sign=5)
    looking.after(3, sign=5)
    looking.silences.forget_others({"another"})
    assert looking.after(1, sign=5) == 0
