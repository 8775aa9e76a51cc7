"""The quick starts of Flask and FastAPI are run as they stand: files are written, lines typed, pages asked over HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.contract.readme import README
from tests.integrations.server_events import text_of
from tests.integrations.servers import listening, serving_command
from tests.processes import LONGEST_S, read_until, started

# How each server is told by the environment to choose a free port, which is all that is not as in the README.
ENVIRONMENT = {
    "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    "FLASK_RUN_PORT": "0",
    "UVICORN_PORT": "0",
    "PYTHONUNBUFFERED": "1",
}


def quick_start(heading: str, folder: Path, *, write: bool = True) -> list[str]:
    """Write the files of a section and return the lines that it has at the terminal."""
    section = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for file, text in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", section, flags=re.S):
        if write:
            (folder / file).write_text(text)
    typed = re.findall(r"```console\n(.*?)```", section, flags=re.S)
    return [line.removeprefix("$ ") for block in typed for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, ollama_server: OllamaSimulator, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.url)
    return tmp_path


def run(line: str, folder: Path) -> str:
    """Type a line, which must succeed, and return what it prints."""
    environment = {**os.environ, **ENVIRONMENT}
    ran = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@contextmanager
def typed(line: str, folder: Path, **environment: str) -> Iterator[str]:
    with serving_command(["bash", "-c", f"exec {line}"], folder=folder, environment={**ENVIRONMENT, **environment}) as address:
        yield address


@contextmanager
def worker(line: str, folder: Path, **environment: str) -> Iterator[None]:
    environment = {**os.environ, **ENVIRONMENT, **environment}
    with started(["bash", "-c", f"exec {line}"], cwd=folder, env=environment, stderr=subprocess.PIPE) as process:
        read_until(process.stderr, "serves all queues")
        yield
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def follow(address: str, job: int) -> tuple[str, object]:
    """What the page shows of a job in the end, and its result."""
    with listening(f"{address}/jobs/{job}/events") as events:
        told = list(events)
    assert told[-1].name == "done", told[-1]
    return text_of(told), told[-1].data["result"]


def test_the_quick_start_of_flask(folder: Path) -> None:
    init, run_worker, run_server = quick_start("Flask", folder)
    run(init, folder)
    with worker(run_worker, folder), typed(run_server, folder) as address:
        job = httpx.post(f"{address}/revisions", data={"text": "teh cat"}, timeout=DEADLINE_S).raise_for_status().json()["job"]
        text, result = follow(address, job)
        assert text.startswith("Answer to")
        assert isinstance(result, dict) and result["text"] == text
        job = httpx.post(f"{address}/reminders/7", timeout=DEADLINE_S).raise_for_status().json()["job"]
        assert follow(address, job) == ("", "reminded 7")
    shown = re.search(r"# .*: (flask .*)$", run_worker)
    assert shown
    assert "rfa-reminders" in run(shown[1], folder)


def test_the_quick_start_of_fastapi(folder: Path) -> None:
    init, run_server = quick_start("FastAPI", folder)
    run(init, folder)
    with typed(run_server, folder) as address:
        # First what waits for a worker: the queue of the other refuses while none is there yet.
        job = httpx.post(f"{address}/reminders/7", timeout=DEADLINE_S).raise_for_status().json()["job"]
        assert follow(address, job) == ("", "reminded 7")
        job = httpx.post(f"{address}/revisions", json={"text": "teh cat"}, timeout=DEADLINE_S).raise_for_status().json()["job"]
        text, result = follow(address, job)
        assert text.startswith("Answer to")
        assert isinstance(result, dict) and result["text"] == text
        assert httpx.get(f"{address}/jobs/77/events", timeout=DEADLINE_S).status_code == 404
