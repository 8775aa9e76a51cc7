"""`gpuqueue top` without a terminal: plain lines and JSON, once or as often as asked for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker, current_job
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.cli.conftest import CONFIGURATION
from tests.cli.emulator import Terminal
from tests.processes import started

Run = Callable[..., Any]
TOP = [sys.executable, "-m", "gpuqueue", "top"]


@pytest.fixture
def gq(folder: Path, ollama_server: OllamaSimulator, start_worker: Callable[..., Worker], gate: Any) -> Iterator[GPUQueue]:
    """A queue with a worker, a job that runs, one that waits, and a card that was read."""
    (folder / "gpuqueue.toml").write_text(CONFIGURATION.format(url=ollama_server.url), encoding="utf-8")
    with GPUQueue.from_config("gpuqueue.toml", discover_plugins=False) as gq:

        @gq.task(name="shop.letters", queue="mail")
        def letters() -> None:
            current_job().progress(0.625, note="Ben\x1b[31m\nand Carl")
            gate.pass_through()

        start_worker(gq, queues=["mail", "ai-realtime"])
        yield gq
        gate.open()


def test_a_pipe_gets_each_thing_as_one_plain_line(gq: GPUQueue, run: Run, until: Any) -> None:
    job = gq.enqueue("shop.letters")
    waiting = gq.ollama.generate("gemma4:e4b", prompt="x", queue="held")
    until(lambda: job.refresh().progress)
    until(lambda: gq.view().devices["gpu0"].reading)
    ran = run("top")
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT[\d:.]+Z  1 worker, database {re.escape(str(gq.database))}", lines[0])
    assert "queue mail: running (1 running)" in lines
    assert "queue ai-batch: no worker serves it (empty)" in lines
    told = "Ben [31m and Carl, attempt 1 of 1, done in about"
    assert [line for line in lines if line.startswith(f"job {job.id} (mail): shop.letters, {told}") and "62 %, for" in line]
    assert [line for line in lines if line.startswith(f"job {waiting.id} (held): ollama.generate gemma4:e4b is next; paused at")]
    assert [line for line in lines if re.match(r"device gpu0: 0 B of 5 GB budget reserved, no model loaded, others hold ", line)]
    assert "\x1b" not in ran.out
    assert not set("▸█▒▓┃│─") & set(ran.out)


def test_json_is_one_object_a_line(gq: GPUQueue, run: Run) -> None:
    first, second = map(json.loads, run("top", "--json", "--count", 2, "--interval", 0.1).out.splitlines())
    assert first["at"] < second["at"]
    assert [queue["name"] for queue in first["queues"]] == ["ai-batch", "ai-realtime", "held", "mail"]


def test_blocks_of_lines_stand_apart(gq: GPUQueue, run: Run) -> None:
    first, second, third = run("top", "--count", 3, "--interval", 0.1).out.split("\n\n")
    assert len(first.splitlines()) == len(second.splitlines()) > 5
    assert third.endswith("\n")


def test_with_an_interval_a_pipe_gets_more_until_it_is_ended(gq: GPUQueue, folder: Path) -> None:
    command = [*TOP, "--interval", "0.1", "--json"]
    with started(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        moments = {json.loads(process.stdout.readline())["at"] for _ in range(3)}
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert len(moments) == 3
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {}])
def test_a_terminal_gets_lines_where_it_cannot_show_a_screen_or_a_number_of_them_is_asked_for(
    gq: GPUQueue, folder: Path, environ: dict[str, str]
) -> None:
    options = [] if environ else ["--count", "1"]
    with Terminal([*TOP, *options], folder, environ=environ) as terminal:
        assert terminal.end() == 0
        terminal.wait_for(lambda _: "queue mail: idle" in terminal.grid.shown, "a line")
        assert terminal.modes_now == terminal.modes_before


@pytest.mark.parametrize("options", [["--interval", "0"], ["--interval", "soon"], ["--count", "0"], ["--count", "-1"]])
def test_what_makes_no_sense_is_refused(gq: GPUQueue, run: Run, options: list[str]) -> None:
    ran = run("top", *options)
    assert (ran.status, ran.out) == (2, "")
    assert options[0] in ran.err


def test_a_database_that_is_not_there_is_not_made(configured: Path, run: Run) -> None:
    ran = run("--database", "mistyped.db", "top")
    assert ran.status == 2
    assert "no database at" in ran.err
    assert not (configured / "mistyped.db").exists()
