"""Owns what a sample application is tested on: a copy of it, its server and worker, a simulated Ollama; clicks nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gpuqueue import GPUQueue, JobHandle
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import GEMMA4_E4B, ModelSpec, OllamaSimulator
from gpuqueue.simulators.ollama.answers import expected_answer
from gpuqueue.testing.waiting import DEADLINE_S, wait_until
from tests.integrations.servers import SERVES_S, environment_in, serving_command
from tests.processes import LONGEST_S, started

APPS = Path(__file__).parent
WITH_CARD = str(APPS / "with_card.py")
# Loads, and gives memory back, twenty times as fast as a real one, but writes an answer in about a second.
SPEED = 20.0
MODEL = replace(GEMMA4_E4B, tokens_per_s=5.0, answer_token_count=90)
PATIENCE = {"connect": "2m", "probe_every": "200ms", "settle": "30ms"}


@dataclass(frozen=True)
class Sample:
    """One application: the folder it is in, the database it makes, and the commands that its README gives."""

    folder: str
    database: str
    prepare: tuple[str, ...]  # run before the others
    serve: tuple[str, ...]
    work: tuple[str, ...]


GUNICORN = ("-m", "gunicorn", "revisions:create_app()", "--threads", "16", "--bind", "127.0.0.1:0", "--no-control-socket")
SAMPLES = {
    "Django": Sample(
        folder="django_revisions",
        database="revisions.db",
        prepare=("manage.py", "migrate", "--verbosity", "0"),
        serve=("-u", "manage.py", "runserver", "--noreload", "0"),
        work=("manage.py", "gpuqueue_worker"),
    ),
    "Flask": Sample(
        folder="flask_revisions",
        database="gpuqueue.db",
        prepare=(),
        serve=("-u", *GUNICORN),
        work=("flask", "--app", "revisions", "gpuqueue", "worker"),
    ),
}


@dataclass(frozen=True)
class Stage:
    """One application that is served, with its queue as another process sees it."""

    address: str
    gq: GPUQueue
    ollama: OllamaSimulator
    model: ModelSpec = MODEL

    def batch(self, prompt: str = "later") -> JobHandle:
        """Store a background job on the same card."""
        return self.gq.ollama.generate(self.model.name, prompt=prompt, queue="ai-batch")

    def newest_revision(self) -> JobHandle:
        """Find the job that was asked for last."""
        return self.gq.jobs(queue="ai-realtime", limit=1)[0]

    def answer_to(self, job: JobHandle) -> str:
        """Return the whole text that the simulated model has for a revision."""
        return expected_answer(self.model, job.record.arguments["messages"])

    def clear(self) -> None:
        """Bring it back to where it began: Ollama there, nothing paused, no job waiting or running."""
        self.ollama.faults.clear()
        self.ollama.come_back()
        for queue in ("ai-realtime", "ai-batch"):
            self.gq.resume(queue)
            self.gq.cancel_all(queue)
        wait_until(lambda: not any(self.gq.holds().values()), "nothing to hold a queue")
        wait_until(lambda: not self.ollama.card.reading().processes, "the memory to be given back")


@contextmanager
def staged(sample: Sample, folder: Path) -> Iterator[Stage]:
    """Copy an application into a folder, as a person would, and run its server and its worker until the block ends."""
    for name in (sample.folder, "page"):
        shutil.copytree(APPS / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    home = folder / sample.folder
    with ExitStack() as leaving:
        ollama = leaving.enter_context(OllamaSimulator(SimulatedCard(speed=SPEED), [MODEL]))
        settings = {"url": ollama.url, **PATIENCE}
        environment = {f"GPUQUEUE_OLLAMA_{name.upper()}": value for name, value in settings.items()}
        if sample.prepare:
            command = [sys.executable, *sample.prepare]
            subprocess.run(command, cwd=home, env={**environment_in(home), **environment}, check=True, timeout=LONGEST_S)
        client = GPUQueue.from_config(
            home / "gpuqueue.toml",
            database=home / sample.database,
            ollama=settings,
            discover_plugins=False,
        )
        gq = leaving.enter_context(client)
        leaving.enter_context(_working([sys.executable, WITH_CARD, ollama.control_url, *sample.work], home, environment))
        served = serving_command([sys.executable, *sample.serve], folder=home, environment=environment)
        stage = Stage(leaving.enter_context(served), gq, ollama)
        wait_until(lambda: gq.view().workers, "a worker to begin")
        yield stage


@contextmanager
def _working(command: list[str], home: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a worker until the block ends, and see that it ended in good order."""
    log = home / "worker.log"
    environment = {**environment_in(home), **environment}
    files = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with (
        log.open("wb") as file,
        started(command, cwd=home, env=environment, stdout=file, longest_s=SERVES_S, **files) as worker,
    ):
        yield
        worker.terminate()
        status = worker.wait(DEADLINE_S)
    assert status == 0 and "Traceback" not in log.read_text(), log.read_text()
