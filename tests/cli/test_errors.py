"""Bad input: exit status 2, one line that names what is wrong, no traceback, and nothing changed."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.processes import LONGEST_S

Run = Callable[..., Any]

WRONG_COMMANDS = [
    (["submit", "ai-realtim", "--model", "m", "--prompt", "x"], ["'ai-realtim'", "did you mean 'ai-realtime'"]),
    (["submit", "mail", "--task", "shop.send"], ["'shop.send'", "--app"]),
    (["submit", "mail"], ["--model", "--task"]),
    (["submit", "ai-batch", "--model", "m"], ["--prompt"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", " "], ["prompt is empty"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--task", "t"], ["--task", "--model"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--embed", "--chat"], ["--embed", "--chat"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--arg", "a=1"], ["--arg"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--delay", "5 parsecs"], ["delay", "parsecs"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--timeout", "-1s"], ["timeout", "negative"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--expires-in", "soon"], ["expires_in", "soon"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--at", "25:00"], ["--at", "25:00"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--at", "18:00", "--delay", "5m"], ["delay", "at"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--max-attempts", "0"], ["max_attempts"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--priority", "9999999"], ["priority"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--wait", "--follow"], ["--wait", "--follow"]),
    (["submit", "ai-batch", "--model", "m", "--prompt", "x", "--timeout-s", "3"], ["--timeout-s"]),
    (["submit", "ai-batch", "--task", "ollama.generate", "--arg", "model"], ["'model'", "KEY=VALUE"]),
    (["submit", "ai-batch", "--task", "ollama.generate", "--arg", 'options={"a":}'], ["options", "not valid JSON"]),
    (["submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=NaN", "--arg", "prompt=x"], ["must be JSON"]),
    (["submit", "ai-batch", "--task", "ollama.generate", "--arg", "modle=m", "--arg", "prompt=x"], ["'modle'", "'model'"]),
    (["submit", "mail", "--task", "x", "--app", "nothing"], ["'nothing'", "module:attribute"]),
    (["submit", "mail", "--task", "x", "--app", "no_such_module:gq"], ["'no_such_module'"]),
    (["worker", "--queue", "ai-bach", "--burst"], ["'ai-bach'", "did you mean 'ai-batch'"]),
    (["jobs", "--queue", "male"], ["'male'", "did you mean 'mail'"]),
    (["jobs", "--state", "finished"], ["'finished'", "completed"]),
    (["job", "12"], ["12"]),
    (["job", str(2**63)], ["ID"]),
    (["explain", "12"], ["12"]),
    (["cancel", "12"], ["12"]),
    (["retry", "12"], ["12"]),
    (["cancel"], ["job ids", "--all"]),
    (["cancel", "--all"], ["--queue QUEUE", "ai-batch"]),
    (["cancel", "--all", "--queue", "male"], ["'male'", "did you mean 'mail'"]),
    (["cancel", "--all", "--queue", "mail", "3"], ["--all", "not both"]),
    (["cancel", "--queue", "mail", "3"], ["--queue needs --all"]),
    (["retry"], ["job ids", "--failed"]),
    (["retry", "--failed", "--queue", "male"], ["'male'", "did you mean 'mail'"]),
    (["retry", "--failed", "3"], ["--failed", "not both"]),
    (["retry", "--queue", "mail"], ["--queue needs --failed"]),
    (["logs", "12"], ["12"]),
    (["logs", "12", "--follow"], ["12"]),
    (["db", "backup", "missing/copy.db"], ["no database"]),
    (["completion", "tcsh"], ["tcsh", "bash"]),
    (["pause", "nope"], ["'nope'"]),
    (["pause", "mail", "--until", "tomorrow"], ["--until", "tomorrow"]),
    (["pause", "mail", "--until", "2001-01-01T00:00:00Z"], ["--until", "in the future"]),
    (["resume", "nope"], ["'nope'"]),
    (["status", "--watch"], ["--watch", "terminal"]),
    (["statsu"], ["statsu"]),
    (["status", "--jsn"], ["--jsn"]),
]


@pytest.mark.parametrize(
    ("argv", "names"), WRONG_COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_a_wrong_command_names_what_is_wrong_and_changes_nothing(
    configured: Path, run: Run, argv: list[str], names: list[str]
) -> None:
    ran = run(*argv)
    assert ran.status == 2
    for name in names:
        assert name in ran.err
    assert ran.out == ""
    assert stored_jobs(configured / "jobs.db") == 0


WRONG_FILES = [
    ("[gpu]\nbudget = '5 bananas'\n", ["gpu.budget", "5 bananas"]),
    ("[gpu]\nbudget = '5GB'\n[models.m]\nvram = '6GB'\n", ["models.m", "6GB"]),
    ("[queues.a]\npause = ['09:00-9:00pm']\n", ["queues.a.pause", "9:00pm"]),
    ("[queues.a]\ntimezone = 'Mars/Olympus'\n", ["queues.a.timezone", "Mars/Olympus"]),
    ("[queues.a]\nconcurency = 1\n", ["concurency", "concurrency"]),
    ("[queues.a]\nyields_to = ['b']\n", ["'b'"]),
    ("[queues.a\n", ["TOML"]),
    ("database = 'postgres://x'\n", ["postgres"]),
]


@pytest.mark.parametrize(("text", "names"), WRONG_FILES, ids=[text.strip() for text, _ in WRONG_FILES])
@pytest.mark.parametrize("command", ["status", "worker", "jobs"])
def test_a_broken_configuration_names_the_file_and_the_key(
    folder: Path, run: Run, text: str, names: list[str], command: str
) -> None:
    file = folder / "gpuqueue.toml"
    file.write_text(text, encoding="utf-8")
    ran = run(command)
    assert ran.status == 2
    for name in [str(file), *names]:
        assert name in ran.err
    assert sorted(path.name for path in folder.iterdir()) == ["gpuqueue.toml"]


@pytest.mark.parametrize("command", [["status"], ["jobs"], ["worker"], ["submit", "q", "--model", "m", "--prompt", "p"], ["gpu"]])
def test_without_configuration_the_error_tells_how_to_begin(folder: Path, run: Run, command: list[str]) -> None:
    ran = run(*command)
    assert ran.status == 2
    assert "gpuqueue init" in ran.err
    assert "--database" in ran.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("option", ["--config", "--database"])
def test_a_file_that_is_not_there_is_named(folder: Path, run: Run, option: str) -> None:
    ran = run(option, "missing.file", "status")
    assert ran.status == 2
    assert str(folder / "missing.file") in ran.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("content", ["", "an application's"])
@pytest.mark.parametrize("command", [("status",), ("jobs",), ("explain", 1)])
def test_a_read_makes_no_queue_in_a_database_that_has_none(run: Run, tmp_path: Path, command: Any, content: str) -> None:
    path = tmp_path / "app.db"
    path.touch()
    if content:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    ran = run("--database", path, *command)
    assert (ran.status, ran.out) == (2, "")
    assert f"{path} contains no queue" in ran.err
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", [["status"], ["worker", "--burst"], ["db", "version"], ["db", "upgrade"]])
def test_a_file_that_is_no_database_is_left_as_it_is(folder: Path, run: Run, command: list[str]) -> None:
    file = folder / "notes.txt"
    file.write_text("my notes, which are not a database at all. " * 100, encoding="utf-8")
    before = file.read_bytes()
    ran = run("--database", file, *command)
    assert ran.status == 2
    assert str(file) in ran.err
    assert file.read_bytes() == before


@pytest.mark.parametrize("place", ["blocker/jobs.db", "missing/jobs.db", "."])
def test_a_place_where_no_database_can_be_is_named(folder: Path, run: Run, place: str) -> None:
    (folder / "blocker").write_text("a file, not a folder", encoding="utf-8")
    ran = run("--database", folder / place, "worker", "--burst")
    assert ran.status == 2
    assert str(folder / place) in ran.err


def test_a_database_of_a_newer_gpuqueue_is_refused(configured: Path, run: Run) -> None:
    assert run("status").status == 0
    with closing(sqlite3.connect(configured / "jobs.db")) as connection, connection:
        connection.execute("UPDATE gpuqueue_version SET version_num = '9999'")
    ran = run("status")
    assert ran.status == 2
    assert "9999" in ran.err
    assert "upgrade gpuqueue" in ran.err
    assert run("doctor").status == 1


def test_a_full_disk_is_said_and_stores_nothing(configured: Path, run: Run) -> None:
    assert run("submit", "ai-batch", "--task", "ollama.generate", "--arg", "model=m", "--arg", "prompt=x").status == 0

    # No file may grow past 300 blocks of 1024 bytes: what a full disk does, for one process.
    command = f"ulimit -f 300; exec {sys.executable} -m gpuqueue submit ai-batch --model m --prompt -"
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=configured,
        input="x" * 400_000,
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    assert ran.returncode == 2, ran.stderr
    assert str(configured / "jobs.db") in ran.stderr
    assert "Traceback" not in ran.stderr
    assert stored_jobs(configured / "jobs.db") == 1


def test_a_pipe_that_closes_early_and_a_full_stdout_make_no_traceback(configured: Path) -> None:
    for redirect in ("| true", "> /dev/full"):
        ran = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m gpuqueue status --json {redirect}"],
            cwd=configured,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_S,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert "Traceback" not in ran.stderr
        assert "Exception ignored" not in ran.stderr


def stored_jobs(file: Path) -> int:
    if not file.exists():
        return 0
    with closing(sqlite3.connect(file)) as connection:
        count: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
    return count
