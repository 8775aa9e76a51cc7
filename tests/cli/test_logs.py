"""`gpuqueue logs`: what a job logged, attempt by attempt, also while it runs; and a running job's progress."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import time_machine

from gpuqueue import GPUQueue, Snooze, Worker, current_job
from gpuqueue.testing.waiting import DEADLINE_S
from tests.processes import LONGEST_S, read_until, started

Run = Callable[..., Any]
TIME = r"\d\d:\d\d:\d\d UTC  "


class Shop:
    """A queue object with a task that says much."""

    def __init__(self, gate: Any) -> None:
        self.gq = GPUQueue.from_config("gpuqueue.toml")
        self.gate = gate
        self.send = self.gq.task(queue="mail", max_attempts=2)(self._send)
        self.knock = self.gq.task(queue="mail")(self._knock)
        self.knocked = False

    def ended(self, handle: Any) -> str:
        """Wait for the job's end; a postponed attempt is made due at once."""
        for job in handle.watch(timeout_s=DEADLINE_S):
            if job.state == "retryable":
                self.gq.store.engine.writer.run(
                    lambda connection: connection.execute("UPDATE jobs SET scheduled_at = enqueued_at")
                )
                self.gq.store.wakeups.ring_workers()
        return str(job.state)

    def _send(self, fails: int = 0, waits: bool = False) -> None:
        job = current_job()
        job.log(f"to a@b.c, attempt {job.attempt}\nsubject: hello")
        job.progress(0.29, note="1 of 3")
        if waits:
            self.gate.pass_through()
        if job.attempt <= fails:
            raise RuntimeError("the server said no")
        job.log("sent")

    def _knock(self) -> None:
        if not self.knocked:
            current_job().log("knocking")
            self.knocked = True
            raise Snooze("1h", reason="still closed")


@pytest.fixture
def noon() -> Iterator[None]:
    """A line of today has no date, and at midnight today ends between the line and a look at it."""
    with time_machine.travel("2026-07-01T12:00:00+00:00"):
        yield


@pytest.fixture
def shop(configured: Path, gate: Any) -> Iterator[Shop]:
    shop = Shop(gate)
    yield shop
    gate.open()
    shop.gq.close()


@pytest.fixture
def worked(shop: Shop) -> Iterator[Worker]:
    with Worker(shop.gq, queues=["mail"]) as worker:
        yield worker


def test_each_line_has_its_time_and_a_failed_attempt_its_reason(noon: None, shop: Shop, worked: Worker, run: Run) -> None:
    assert shop.ended(shop.send.enqueue(fails=1)) == "completed"
    ran = run("logs", 1)
    assert ran.status == 0
    assert re.fullmatch(
        f"{TIME}to a@b.c, attempt 1\n {{14}}subject: hello\n"
        f"{TIME}— attempt 1 of 2 failed: RuntimeError: the server said no\n"
        f"{TIME}— attempt 2 of 2 started on {worked.id}\n"
        f"{TIME}to a@b.c, attempt 2\n {{14}}subject: hello\n"
        f"{TIME}sent\n",
        ran.out,
    ), ran.out


def test_as_json_each_entry_is_an_object_on_a_line_of_its_own(shop: Shop, worked: Worker, run: Run) -> None:
    shop.ended(shop.send.enqueue(fails=2))
    entries = [json.loads(line) for line in run("logs", 1, "--json").out.splitlines()]
    assert [(entry["kind"], entry["attempt"], entry["lease"], entry["seq"], entry["outcome"]) for entry in entries] == [
        ("line", 1, 1, 1, None),
        ("ended", 1, 1, None, "retried"),
        ("began", 2, 2, None, None),
        ("line", 2, 2, 2, None),
        ("ended", 2, 2, None, "discarded"),
    ]
    assert entries[0]["message"] == "to a@b.c, attempt 1\nsubject: hello"
    assert entries[-1]["message"] == "attempt 2 of 2 failed permanently: RuntimeError: the server said no"
    assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["at"]) for entry in entries)


def test_times_are_in_the_zone_of_the_machine(shop: Shop, worked: Worker, configured: Path) -> None:
    shop.ended(shop.send.enqueue())
    command = [sys.executable, "-m", "gpuqueue", "logs", "1"]
    environ = {**os.environ, "TZ": "Asia/Bangkok"}
    ran = subprocess.run(command, cwd=configured, env=environ, capture_output=True, text=True, check=True, timeout=LONGEST_S)
    local = shop.gq.job(1).logs()[0].at.timestamp() + 7 * 3600
    assert f"{int(local) // 3600 % 24:02d}:{int(local) // 60 % 60:02d}:{int(local) % 60:02d} +07  to" in ran.stdout


def test_a_line_of_another_day_has_its_date_and_its_seconds_too(shop: Shop, worked: Worker, run: Run) -> None:
    shop.ended(shop.send.enqueue())
    shop.gq.store.engine.writer.run(lambda connection: connection.execute("UPDATE logs SET at = at - 2 * 86400000000"))
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC  to a@b\.c", run("logs", 1).out)


def test_attempts_that_count_none_are_told_apart(noon: None, shop: Shop, worked: Worker, run: Run) -> None:
    shop.ended(shop.knock.enqueue())
    assert re.fullmatch(
        f"{TIME}knocking\n"
        f"{TIME}— attempt 1 of 1 was postponed and does not count: still closed\n"
        f"{TIME}— attempt 1 of 1 started on {worked.id}\n",
        run("logs", 1).out,
    )


def test_a_job_without_a_line_says_so_beside_the_results(shop: Shop, run: Run) -> None:
    shop.send.enqueue()
    ran = run("logs", 1)
    assert (ran.status, ran.out) == (0, "")
    assert "job 1 is available" in ran.err
    assert "gpuqueue logs 1 --follow" in ran.err
    shop.gq.job(1).cancel()
    assert "job 1 is cancelled and logged nothing" in run("logs", 1).err
    assert run("logs", 2).status == 2


def follow(folder: Path, *options: str) -> AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "gpuqueue", "logs", "1", "--follow", *options]
    return started(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_following_prints_lines_as_they_come_until_the_job_ends(shop: Shop, worked: Worker, configured: Path) -> None:
    shop.send.enqueue(waits=True)
    with follow(configured) as process:
        assert process.stdout is not None
        assert "to a@b.c" in process.stdout.readline()
        assert "subject" in process.stdout.readline()
        shop.gate.open()
        out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert out.endswith("sent\n")
    assert err == "job 1 is completed\n"


def test_following_a_job_that_waits_says_why_and_goes_on_through_its_attempts(shop: Shop, configured: Path) -> None:
    handle = shop.send.enqueue(fails=2)
    with follow(configured, "--json") as process:
        said = read_until(process.stderr, "start a worker")
        with Worker(shop.gq, queues=["mail"]):
            assert shop.ended(handle) == "discarded"
            out, rest = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0  # it was the job that failed, not the following
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["line", "ended", "began", "line", "ended"]
    assert "no worker serves queue 'mail'" in said
    assert rest.endswith("job 1 is discarded\n")


def test_ctrl_c_ends_the_following_and_not_the_job(shop: Shop, worked: Worker, configured: Path) -> None:
    handle = shop.send.enqueue(waits=True)
    with follow(configured) as process:
        assert process.stdout is not None
        assert "to a@b.c" in process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "job 1 continues. Cancel it: gpuqueue cancel 1" in err
    assert "Traceback" not in err
    shop.gate.open()
    assert shop.ended(handle) == "completed"


def test_a_running_job_shows_how_far_it_is(shop: Shop, worked: Worker, run: Run, until: Any) -> None:
    shop.send.enqueue(waits=True)
    until(lambda: shop.gq.job(1).progress)
    assert "29 % (1 of 3), for " in run("jobs").out
    assert "progress 29 % (1 of 3)" in run("job", 1).out
    for job in (json.loads(run("job", 1, "--json").out), json.loads(run("jobs", "--json").out)["jobs"][0]):
        assert (job["progress"], job["progress_note"]) == (0.29, "1 of 3")
    shop.gate.open()
    shop.ended(shop.gq.job(1))
    assert "29 %" not in run("jobs").out + run("job", 1).out


def test_a_job_that_failed_shows_how_far_it_came(shop: Shop, worked: Worker, run: Run) -> None:
    shop.ended(shop.send.using(max_attempts=1).enqueue(fails=1))
    assert "its last attempt reached 29 % (1 of 3)" in run("job", 1).out


def test_a_job_that_said_nothing_has_no_progress(shop: Shop, run: Run) -> None:
    shop.send.enqueue()
    job = json.loads(run("job", 1, "--json").out)
    assert (job["progress"], job["progress_note"]) == (None, None)
    assert "%" not in run("job", 1).out
