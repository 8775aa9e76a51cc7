"""Submitting: what becomes a job, what is said when it waits, and following it to its end."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue, Worker
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.processes import read_until, started

Run = Callable[..., Any]


@pytest.fixture
def served(simulator: OllamaSimulator) -> Iterator[GPUQueue]:
    """A worker that serves every queue of the folder."""
    with GPUQueue.from_config("gpuqueue.toml") as gq, Worker(gq):
        yield gq


def test_following_prints_the_answer_alone_on_stdout(served: GPUQueue, run: Run) -> None:
    ran = run("submit", "ai-realtime", "--model", "gemma4:e4b", "--prompt", "hello", "--follow")
    assert ran.status == 0
    assert ran.out == served.job(1).result(timeout_s=DEADLINE_S)["text"] + "\n"
    assert "job 1" in ran.err


def test_following_as_json_prints_one_object_a_line(served: GPUQueue, run: Run) -> None:
    ran = run("submit", "ai-realtime", "--model", "gemma4:e4b", "--prompt", "hello", "--follow", "--json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert "".join(line["text"] for line in lines[:-1]) == lines[-1]["job"]["result"]["text"]
    assert lines[-1]["job"]["state"] == "completed"


def test_waiting_prints_the_result(served: GPUQueue, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    ran = run("submit", "ai-realtime", "--model", "gemma4:e4b", "--prompt", "-", "--chat", "--system", "be brief", "--wait")
    assert ran.status == 0
    assert ran.out.strip()
    assert [message["role"] for message in served.job(1).record.arguments["messages"]] == ["system", "user"]
    assert served.job(1).record.arguments["messages"][1]["content"] == "from a pipe"
    embedded = run("submit", "ai-realtime", "--model", "nomic-embed-text", "--prompt", "a text", "--embed", "--wait")
    assert len(json.loads(embedded.out)["embeddings"]) == 1


def test_a_failed_job_ends_with_status_1_and_its_error(served: GPUQueue, run: Run) -> None:
    for how in ("--wait", "--follow"):
        ran = run("submit", "ai-realtime", "--model", "no-such-model", "--prompt", "x", how)
        assert ran.status == 1
        assert "ollama pull no-such-model" in ran.err
        assert ran.out == ""


def test_what_keeps_a_job_from_starting_is_said_at_once(configured: Path, run: Run) -> None:
    run("pause", "ai-batch", "--reason", "server moves", "--until", "30m")
    ran = run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x")
    assert ran.status == 0
    assert ran.out == "1\n"
    assert "(server moves) until" in ran.err
    assert "no worker serves queue 'ai-batch'" in ran.err
    assert f"gpuqueue --config {configured / 'gpuqueue.toml'} worker" in ran.err


def test_a_job_that_nobody_may_keep_waiting_is_refused_with_the_reason(configured: Path, run: Run) -> None:
    ran = run("submit", "ai-realtime", "--model", "gemma4:e4b", "--prompt", "x", "--wait")
    assert ran.status == 1
    assert "AI service temporarily unavailable" in ran.err
    assert "no worker serves ai-realtime" in ran.err


def test_waiting_gives_up_in_time_and_leaves_the_job(configured: Path, run: Run) -> None:
    ran = run("submit", "ai-batch", "--model", "gemma4:e4b", "--prompt", "x", "--wait", "--timeout-s", "0.01")
    assert ran.status == 1
    assert "did not end within" in ran.err
    assert "gpuqueue cancel 1" in ran.err
    assert json.loads(run("job", 1, "--json").out)["state"] == "available"


def test_a_job_with_options_is_stored_with_them(configured: Path, run: Run) -> None:
    options = ["--priority", 5, "--max-attempts", 3, "--timeout", "90s", "--expires-in", "1h", "--tag", "a", "--tag", "b"]
    ran = run("submit", "ai-batch", "--model", "m", "--prompt", "x", "--delay", "10m", *options, "--json")
    job = json.loads(ran.out)["job"]
    assert (job["priority"], job["max_attempts"], job["timeout_s"], job["tags"]) == (5, 3, 90.0, ["a", "b"])
    assert job["state"] == "scheduled"
    assert json.loads(ran.out)["explanation"]["reasons"][0]["reason"] == "scheduled"
    assert "until" in ran.err


def test_arguments_are_json_or_text(configured: Path, run: Run) -> None:
    given = ["--arg", 'options={"num_ctx": 512}', "--arg", "prompt=a=b", "--arg", "model=m", "--arg", "raw=true"]
    run("submit", "ai-batch", "--task", "ollama.generate", *given)
    arguments = json.loads(run("job", 1, "--json").out)["arguments"]
    assert arguments == {"options": {"num_ctx": 512}, "prompt": "a=b", "model": "m", "raw": True}


def test_ctrl_c_while_following_leaves_the_job_and_says_how_to_cancel_it(configured: Path) -> None:
    command = [sys.executable, "-m", "gpuqueue", "submit", "ai-batch", "--model", "m", "--prompt", "x", "--follow"]
    with started(command, cwd=configured, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        said = read_until(process.stderr, "→")  # the last line before it begins to follow
        os.kill(process.pid, signal.SIGINT)
        _, rest = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "job 1 continues" in rest
    assert "gpuqueue cancel 1" in rest
    assert "Traceback" not in said + rest
