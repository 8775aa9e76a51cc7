"""The lines under "At the terminal" are run as they stand, one after the other, against the simulated Ollama."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuqueue.testing.waiting import DEADLINE_S
from tests.contract.readme import README
from tests.processes import LONGEST_S, read_until, started

SCRIPTS = os.path.dirname(sys.executable)

# What each line shows, on stdout or stderr: its beginning → what a reader is promised of it.
SHOWS = {
    "gpuqueue init": ["wrote ", "gemma4:e4b"],
    "gpuqueue worker": ["serves all queues"],
    "gpuqueue submit ai-realtime": ["job 1", "Answer to"],
    "gpuqueue status": ["ai-batch", "Workers", "Devices", "available"],
    "gpuqueue top": ["1 worker", "queue ai-realtime: idle (1 completed)", "device gpu0: "],
    "gpuqueue pause": ["ai-batch is paused until"],
    "gpuqueue submit ai-batch": ["2\n"],
    "gpuqueue explain 2": ["maintenance) until", "→ gpuqueue resume ai-batch"],
    "gpuqueue resume": ["ai-batch"],
    "gpuqueue cancel": ["ai-batch"],
    "gpuqueue jobs": [" 1  completed  ai-realtime"],
    "gpuqueue db backup": ["gpuqueue.backup: ", "checked"],
    "gpuqueue doctor": ["no problems"],
}


def lines() -> list[str]:
    section = README.read_text().partition("## At the terminal\n")[2].partition("\n## ")[0]
    block = re.search(r"```console\n(.*?)```", section, flags=re.S)
    assert block
    return [line.removeprefix("$ ") for line in block[1].splitlines() if line.startswith("$ ")]


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment in which `gpuqueue` is on the path and OLLAMA_HOST is a simulator, run as the README says."""
    command = [sys.executable, "-m", "gpuqueue.simulators.ollama", "--port", "0", "--speed", "10"]
    with started(command, stdout=subprocess.PIPE) as simulator:
        assert simulator.stdout is not None
        url = simulator.stdout.readline().strip()
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("GPUQUEUE_")}
        yield {**inherited, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", "OLLAMA_HOST": url}


def test_the_lines_at_the_terminal_run_as_one_story(tmp_path: Path, environ: dict[str, str]) -> None:
    told = []
    with ExitStack() as leaving:
        for line in lines():
            (begins,) = [begins for begins in SHOWS if line.startswith(begins)]
            told.append(begins)
            if begins == "gpuqueue worker":
                command = ["bash", "-c", f"exec {line}"]
                worker = leaving.enter_context(started(command, cwd=tmp_path, env=environ, stderr=subprocess.PIPE))
                read_until(worker.stderr, *SHOWS[begins])
                continue
            ran = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=LONGEST_S, check=False
            )
            assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
            for words in SHOWS[begins]:
                assert words in ran.stdout + ran.stderr, f"{line} does not show {words!r}:\n{ran.stdout}{ran.stderr}"
        worker.send_signal(signal.SIGINT)
        _, rest = worker.communicate(timeout=DEADLINE_S)
    assert worker.returncode == 0, rest
    assert told == list(SHOWS)
