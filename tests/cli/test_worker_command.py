"""The worker's command: what it prints, which configuration it takes, how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue
from gpuqueue.testing.waiting import DEADLINE_S
from tests.history import History
from tests.processes import read_until, started

Run = Callable[..., Any]


def test_a_burst_runs_what_there_is_and_says_where(configured: Path, run: Run, app: str) -> None:
    name = app.partition(":")[0]
    run("submit", "mail", "--app", app, "--task", f"{name}.send", "--arg", "to=x")
    ran = run("worker", "--app", app, "--burst", "--queue", "mail")
    assert ran.status == 0
    assert f"database: {configured / 'jobs.db'}" in ran.err
    assert "queues: mail" in ran.err
    assert "sent 1 to x" in run("job", 1).out


def test_the_log_is_json_where_the_configuration_says_so_and_the_option_goes_before_it(configured: Path, run: Run) -> None:
    with (configured / "gpuqueue.toml").open("a") as file:
        file.write('[worker]\nlog_format = "json"\n')
    ran = run("worker", "--burst", "--queue", "mail")
    events = [json.loads(line)["event"] for line in ran.err.splitlines()]
    assert (events[0], events[-1]) == ("worker_started", "worker_stopped")
    assert "serves mail" in run("worker", "--burst", "--queue", "mail", "--log-format", "text").err
    assert run("worker", "--log-format", "yaml").status == 2


@pytest.mark.parametrize("attribute", ["other", "missing"])
def test_an_app_that_is_no_queue_object_is_named(configured: Path, run: Run, app: str, attribute: str) -> None:
    ran = run("worker", "--app", app.replace(":gq", f":{attribute}"), "--burst")
    assert ran.status == 2
    assert attribute in ran.err


def test_an_app_that_cannot_be_imported_says_where(configured: Path, run: Run) -> None:
    (configured / "broken_shop.py").write_text("x = 1\nraise RuntimeError('no settings')\n", encoding="utf-8")
    ran = run("worker", "--app", "broken_shop:gq", "--burst")
    assert ran.status == 2
    assert "no settings" in ran.err
    assert "broken_shop.py, line 2" in ran.err


def test_an_app_and_a_database_that_differ_are_both_named(configured: Path, run: Run, app: str) -> None:
    ran = run("--database", "other.db", "worker", "--app", app, "--burst")
    assert ran.status == 2
    assert str(configured / "other.db") in ran.err
    assert str(configured / "jobs.db") in ran.err
    assert not (configured / "other.db").exists()
    assert run("--database", "jobs.db", "worker", "--app", app, "--burst", "--queue", "mail").status == 0


def test_an_app_and_a_configuration_that_differ_are_both_named(configured: Path, run: Run, app: str) -> None:
    (configured / "second.toml").write_text('database = "second.db"\n', encoding="utf-8")
    ran = run("--config", "second.toml", "worker", "--app", app, "--burst")
    assert ran.status == 2
    assert str(configured / "second.toml") in ran.err
    assert str(configured / "gpuqueue.toml") in ran.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_idle_worker_in_good_order(configured: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "gpuqueue", "worker", "--queue", "mail"]
    with started(command, cwd=configured, stderr=subprocess.PIPE) as process:
        read_until(process.stderr, "serves mail")
        os.kill(process.pid, number)
        _, rest = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "stopping" in rest
    assert " stopped" in rest
    with GPUQueue.from_config(configured / "gpuqueue.toml") as gq:
        assert gq.workers() == []


def test_the_second_signal_gives_a_running_job_back_at_once(configured: Path, run: Run) -> None:
    (configured / "slow_shop.py").write_text(
        "import sys, threading\n"
        "from gpuqueue import GPUQueue\n"
        "gq = GPUQueue.from_config('gpuqueue.toml')\n"
        "@gq.task(queue='mail')\n"
        "def stay():\n"
        "    print('running', file=sys.stderr, flush=True)\n"
        "    threading.Event().wait()\n",
        encoding="utf-8",
    )
    with GPUQueue.from_config(configured / "gpuqueue.toml") as gq:
        History(gq)
    assert run("submit", "mail", "--app", "slow_shop:gq", "--task", "slow_shop.stay").status == 0
    command = [sys.executable, "-m", "gpuqueue", "worker", "--app", "slow_shop:gq", "--queue", "mail"]
    with started(command, cwd=configured, stderr=subprocess.PIPE) as process:
        for awaited in ("running", "stopping"):
            read_until(process.stderr, awaited)
            os.kill(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=DEADLINE_S)
    assert "returning running jobs to the queue" in rest
    assert process.returncode == 0
    with GPUQueue.from_config(configured / "gpuqueue.toml") as gq:
        assert (str(gq.job(1).state), gq.job(1).attempt) == ("available", 0)
        History(gq, is_kept=True).check(unfinished=[1])


def test_the_third_signal_ends_a_worker_that_hangs_in_a_plugin(configured: Path) -> None:
    (configured / "hanging_shop.py").write_text(
        "import sys, threading\n"
        "from gpuqueue import GPUQueue\n"
        "from gpuqueue.plugins import hookimpl\n"
        "class Hanging:\n"
        "    @hookimpl\n"
        "    def queue_hold(self, details):\n"
        "        print('hanging', file=sys.stderr, flush=True)\n"
        "        threading.Event().wait()\n"
        "gq = GPUQueue.from_config('gpuqueue.toml', plugins={'hanging': Hanging()})\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "gpuqueue", "worker", "--app", "hanging_shop:gq"]
    with started(command, cwd=configured, stderr=subprocess.PIPE) as process:
        for awaited in ("hanging", "stopping", "returning"):
            read_until(process.stderr, awaited)
            os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -signal.SIGTERM
