"""Interrupts: whatever a thread does with a queue, and at whichever step it is interrupted, all threads can use the queue."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuqueue import GPUQueue, UsageError
from gpuqueue.store import forks as at_fork
from gpuqueue.testing.queues import QueueMaker
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import fork, forks
from tests.processes import LONGEST_S
from tests.store.interrupts import Interrupt, reached

pytestmark = [forks, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for what an interrupt has left, and hide what Python prints of one that it goes on after."""
    monkeypatch.setattr(at_fork, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)


@pytest.fixture
def gq(make_queue: QueueMaker) -> GPUQueue:
    made = make_queue()
    made.task(name="noop")(lambda: None)
    made.enqueue("noop")
    return made


def fork_and_reap() -> None:
    pid = fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def raise_interrupt() -> None:
    raise Interrupt


def write(gq: GPUQueue) -> None:
    gq.enqueue("noop")
    gq.enqueue_many([("noop", {})] * 2)


def read(gq: GPUQueue) -> None:
    gq.counts()
    gq.store.changed()


def use(gq: GPUQueue) -> None:
    write(gq)
    read(gq)


def use_in_another_thread(gq: GPUQueue) -> object:
    met: list[object] = ["it hangs"]

    def work() -> None:
        try:
            use(gq)
        except BaseException as error:
            met[:] = [error]
        else:
            met.clear()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    return met


WORKS: dict[str, Callable[[GPUQueue], object]] = {
    "write": write,
    "read": read,
    "fork": lambda _: fork_and_reap(),
    "close": lambda gq: gq.store.engine.close(),
}


def use_unless_refused(gq: GPUQueue) -> None:
    try:
        write(gq)
    except UsageError as refusal:
        assert "already writing" in str(refusal) or "is forking" in str(refusal)


REACTIONS: dict[str, Callable[[GPUQueue], object]] = {
    "raises": lambda _: raise_interrupt(),
    "forks": lambda _: fork_and_reap(),
    "writes": use_unless_refused,
}


# A fork in the middle of a fork has a program of its own.
@pytest.mark.parametrize(
    ("name", "reaction"), [both for both in itertools.product(WORKS, REACTIONS) if both != ("fork", "forks")]
)
def test_a_handler_at_any_step_leaves_the_queue_usable(gq: GPUQueue, name: str, reaction: str) -> None:
    work, react = WORKS[name], REACTIONS[reaction]
    use(gq)
    for step in itertools.count():
        if not reached(step, lambda: work(gq), lambda: react(gq)):
            break
        assert not use_in_another_thread(gq), f"step {step}"
        use(gq)
    assert step > 10


def test_a_fork_at_any_step_of_a_fork_leaves_the_queue_usable(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.store.forks_in_forks", str(tmp_path / "jobs.db")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
