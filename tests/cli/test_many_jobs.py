"""Retrying all that failed and cancelling all of a queue: how many, and whether a person is asked first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, State, Worker
from tests.cli.terminal import shown

Run = Callable[..., Any]


@pytest.fixture
def gq(configured: Path) -> Iterator[GPUQueue]:
    with GPUQueue.from_config("gpuqueue.toml") as gq:

        @gq.task(name="fail", queue="mail", max_attempts=1)
        def fail() -> None:
            raise RuntimeError("no")

        @gq.task(name="send", queue="mail")
        def send() -> None: ...

        yield gq


@pytest.fixture
def failed(gq: GPUQueue) -> GPUQueue:
    """Three jobs of mail that were discarded."""
    gq.enqueue_many([("fail", {})] * 3)
    Worker(gq, queues=["mail"], burst=True).run()
    assert gq.counts()["mail"] == {"discarded": 3}
    return gq


def test_all_failed_jobs_are_retried_and_counted(failed: GPUQueue, run: Run) -> None:
    ran = run("retry", "--failed")
    assert ran.status == 0
    assert ran.out.startswith("3 jobs are available again\n")
    assert "no worker serves mail. Start one: gpuqueue" in ran.out
    assert failed.counts()["mail"] == {"available": 3}
    assert run("retry", "--failed").out == "no discarded jobs\n"


def test_the_failed_jobs_of_one_queue_are_retried(failed: GPUQueue, run: Run) -> None:
    assert json.loads(run("retry", "--failed", "--queue", "ai-batch", "--json").out) == {"retried": 0}
    assert run("retry", "--failed", "--queue", "ai-batch").out == "no discarded jobs in ai-batch\n"
    assert json.loads(run("retry", "--failed", "--queue", "mail", "--json").out) == {"retried": 3}


def test_all_of_a_queue_is_cancelled_and_counted(gq: GPUQueue, run: Run) -> None:
    gq.enqueue_many([("send", {})] * 3)
    assert run("cancel", "--all", "--queue", "mail").out == "mail: 3 waiting jobs cancelled\n"
    assert run("cancel", "--all", "--queue", "mail").out == "mail has no waiting or running jobs\n"
    assert json.loads(run("cancel", "--all", "--queue", "mail", "--json").out) == {"cancelled": 0, "asked_to_stop": 0}


def test_a_running_job_is_asked_to_stop(gq: GPUQueue, run: Run, gate: Any, until: Any) -> None:
    @gq.task(name="stay", queue="mail")
    def stay() -> None:
        gate.pass_through()

    job = gq.enqueue("stay")
    with Worker(gq, queues=["mail"]):
        until(lambda: job.refresh().state is State.RUNNING)
        assert json.loads(run("cancel", "--all", "--queue", "mail", "--json").out) == {"cancelled": 0, "asked_to_stop": 1}
        assert run("cancel", "--all", "--queue", "mail").out == "mail: 1 running job asked to stop\n"
        gate.open()


def test_one_of_several_that_cannot_be_retried_is_left_out(failed: GPUQueue, run: Run) -> None:
    assert run("retry", 1, 2).status == 0
    ran = run("retry", 1, 3)
    assert ran.status == 1  # something was changed
    assert "job 1 is available" in ran.err
    assert failed.job(3).state == State.AVAILABLE
    assert run("retry", 1, 2, 3).status == 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["cancel", "--all", "--queue", "mail"], "mail: cancel 3 waiting jobs? [y/N]"),
        (["retry", "--failed"], "Retry 3 discarded jobs? [y/N]"),
        (["retry", "--failed", "--queue", "mail"], "Retry 3 discarded jobs in mail? [y/N]"),
        (["db", "prune", "--older-than", "0s"], "Delete 3 jobs that finished more than 0 s ago? [y/N]"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_at_a_terminal_a_person_is_asked_first(failed: GPUQueue, configured: Path, argv: list[str], says: str) -> None:
    if argv[0] == "cancel":
        failed.retry_failed()
    before = failed.counts()["mail"]
    status, screen = shown(configured, *argv, types="n\n")
    assert status == 1
    assert says in screen
    assert screen.endswith("nothing was changed\n")
    assert failed.counts()["mail"] == before
    assert shown(configured, *argv, types="\x04")[0] == 130
    assert failed.counts()["mail"] == before
    status, screen = shown(configured, *argv, "--yes")
    assert status == 0
    assert "[y/N]" not in screen
    assert failed.counts()["mail"] != before


def test_yes_at_the_terminal_goes_on(failed: GPUQueue, configured: Path) -> None:
    status, screen = shown(configured, "retry", "--failed", types="y\n")
    assert status == 0
    assert "3 jobs are available again" in screen


def test_for_one_job_nobody_is_asked(gq: GPUQueue, configured: Path) -> None:
    gq.enqueue("send")
    status, screen = shown(configured, "cancel", "--all", "--queue", "mail")
    assert (status, screen) == (0, "mail: 1 waiting job cancelled\n")
