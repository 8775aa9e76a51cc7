"""Owns what the command line's tests share: running it in this process, and a folder with a configuration."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpuqueue.cli import main
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S

CONFIGURATION = """\
database = "sqlite:///jobs.db"

[gpu]
budget = "5GB"
margin = "3GB"

[ollama]
url = "{url}"
settle = "10ms"

[models."gemma4:e4b"]
vram = "4.5GB"
options = {{ num_ctx = 4096 }}

[models.nomic-embed-text]
vram = "0.5GB"

[queues.ai-realtime]
gpu = true
concurrency = 1
when_unavailable = "reject"

[queues.ai-batch]
gpu = true
concurrency = 1
yields_to = ["ai-realtime"]
when_unavailable = "retry"

[queues.held]
gpu = true
pause = ["00:00-12:00", "12:00-00:00"]

[queues.mail]
"""

APP = """\
from gpuqueue import GPUQueue

gq = GPUQueue.from_config("gpuqueue.toml")
other = 7


@gq.task(queue="mail")
def send(to: str, count: int = 1) -> str:
    return f"sent {count} to {to}"


@gq.task(queue="mail")
def fail() -> None:
    raise RuntimeError("the server said no")
"""


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*argv: object) -> Ran:
        capfd.readouterr()
        status = main([str(word) for word in argv])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the working directory, without any gpuqueue in the environment."""
    for name in ("GPUQUEUE_CONFIG", "GPUQUEUE_DATABASE", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    logging.getLogger("gpuqueue").handlers.clear()


@pytest.fixture
def configured(folder: Path) -> Path:
    """The same with a configuration whose Ollama does not answer."""
    (folder / "gpuqueue.toml").write_text(CONFIGURATION.format(url="http://127.0.0.1:9"), encoding="utf-8")
    return folder


@pytest.fixture
def app(configured: Path) -> Iterator[str]:
    """The module and attribute of an application's queue object in that folder."""
    name = f"shop_{uuid.uuid4().hex}"
    (configured / f"{name}.py").write_text(APP, encoding="utf-8")
    yield f"{name}:gq"
    module = sys.modules.pop(name, None)
    if module is not None:
        module.gq.close()


@pytest.fixture
def simulator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaSimulator]:
    """A simulated Ollama that the folder's configuration names; a busy machine may be slow to answer for it."""
    for module in ("checks", "initialise"):
        monkeypatch.setattr(f"gpuqueue.cli.{module}.PROBE_S", DEADLINE_S)
    with OllamaSimulator(speed=1000.0) as ollama:
        (folder / "gpuqueue.toml").write_text(CONFIGURATION.format(url=ollama.url), encoding="utf-8")
        yield ollama
