"""Completing words in a shell: what is offered, in a real bash too, and silence when there is nothing to read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue
from tests.processes import LONGEST_S

Run = Callable[..., Any]
SCRIPTS = os.path.dirname(sys.executable)  # where the command `gpuqueue` is
SHELLS = ("bash", "zsh", "fish")


def offered(folder: Path, line: str) -> list[str]:
    """What is offered for the last word of a line, which may be empty."""
    words = line.split(" ")
    environ = {"_GPUQUEUE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    ran = subprocess.run(
        [sys.executable, "-m", "gpuqueue"],
        cwd=folder,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=LONGEST_S,
    )
    assert ran.stderr == ""
    return [item.removeprefix("plain,") for item in ran.stdout.split()]


@pytest.fixture
def filled(configured: Path) -> Path:
    """Jobs 1 to 3: discarded, available, cancelled; and a queue that only the database knows."""
    with GPUQueue.from_config("gpuqueue.toml") as gq:
        gq.task(name="send", queue="letters")(lambda: None)
        for _ in range(3):
            gq.enqueue("send")
        gq.store.queues.ensure("letters")
        gq.store.jobs.refuse_one(1, message="away", now_us=gq.now_us())
        gq.job(3).cancel()
    return configured


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpuqueue st", ["status"]),
        ("gpuqueue db ", ["backup", "check", "path", "prune", "restore", "upgrade", "vacuum", "version"]),
        ("gpuqueue completion ", list(SHELLS)),
        ("gpuqueue jobs --queue ", ["ai-batch", "ai-realtime", "held", "letters", "mail"]),
        ("gpuqueue jobs --queue ai", ["ai-batch", "ai-realtime"]),
        ("gpuqueue jobs --state c", ["completed", "cancelled"]),
        ("gpuqueue db prune --state ", ["completed", "cancelled", "discarded"]),
        ("gpuqueue pause l", ["letters"]),
        ("gpuqueue resume m", ["mail"]),
        ("gpuqueue submit h", ["held"]),
        ("gpuqueue worker --queue m", ["mail"]),
        ("gpuqueue cancel --all --queue m", ["mail"]),
        ("gpuqueue retry --failed --queue m", ["mail"]),
        ("gpuqueue job ", ["3", "2", "1"]),
        ("gpuqueue explain ", ["3", "2", "1"]),
        ("gpuqueue logs 2", ["2"]),
        ("gpuqueue cancel ", ["2"]),
        ("gpuqueue retry ", ["3", "1"]),
        ("gpuqueue jobs --after ", ["3", "2", "1"]),
        ("gpuqueue --database jobs.db job ", ["3", "2", "1"]),
        ("gpuqueue --database missing.db job ", []),
        ("gpuqueue --config gp", ["file,gp"]),
    ],
)
def test_what_is_offered(filled: Path, line: str, expected: list[str]) -> None:
    assert offered(filled, line) == expected


@pytest.mark.parametrize("line", ["gpuqueue jobs --queue ", "gpuqueue job ", "gpuqueue --config missing.toml cancel "])
def test_without_configuration_and_database_nothing_is_offered_said_or_made(folder: Path, line: str) -> None:
    assert offered(folder, line) == []
    assert list(folder.iterdir()) == []


def test_a_broken_configuration_and_a_file_that_is_no_database_are_silent(configured: Path) -> None:
    (configured / "jobs.db").write_text("my notes " * 1000)
    assert offered(configured, "gpuqueue jobs --queue m") == ["mail"]
    assert offered(configured, "gpuqueue job ") == []
    (configured / "gpuqueue.toml").write_text("[gpu\n")
    assert offered(configured, "gpuqueue jobs --queue ") == []
    assert (configured / "jobs.db").read_text().startswith("my notes")


def test_a_database_is_read_and_not_made(configured: Path) -> None:
    assert offered(configured, "gpuqueue pause a") == ["ai-batch", "ai-realtime"]
    assert [file.name for file in configured.iterdir()] == ["gpuqueue.toml"]


def test_a_broken_plugin_does_not_disturb_completion(folder: Path) -> None:
    module = "broken_plugin"
    (folder / f"{module}.py").write_text("raise RuntimeError('half installed')\n", encoding="utf-8")
    info = folder / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[gpuqueue]\nbroken = {module}\n", encoding="utf-8")
    assert "status" in offered(folder, "gpuqueue ")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(folder: Path, run: Run, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.status == 0
    assert "_GPUQUEUE_COMPLETE" in ran.out
    assert ran.err == ""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here to read it")
    subprocess.run([shell, "-n"], input=ran.out, text=True, check=True, timeout=LONGEST_S)


def test_another_shell_is_refused_with_those_that_there_are(folder: Path, run: Run) -> None:
    ran = run("completion", "tcsh")
    assert ran.status == 2
    assert "'bash', 'zsh', 'fish'" in ran.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_in_a_real_bash_the_words_come(filled: Path) -> None:
    script = (
        'eval "$(gpuqueue completion bash)"\n'
        "complete -p gpuqueue >&2\n"
        'COMP_WORDS=(gpuqueue jobs --queue "ai") COMP_CWORD=3\n'
        "_gpuqueue_completion gpuqueue\n"
        'echo "${COMPREPLY[@]}"'
    )
    environ = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=filled, env=environ, capture_output=True, text=True, check=True, timeout=LONGEST_S
    )
    assert ran.stdout == "ai-batch ai-realtime\n"
    assert "_gpuqueue_completion" in ran.stderr
