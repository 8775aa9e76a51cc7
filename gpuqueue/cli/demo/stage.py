"""Sets up what the demo runs on: its folder, its configuration, the simulated card and the worker process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import gpuqueue
from gpuqueue.cli.demo import tasks
from gpuqueue.cli.demo.real_ollama import ask_ollama
from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.initial import initial_toml
from gpuqueue.config.loading import Config
from gpuqueue.domain.errors import GPUQueueError, UsageError
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import GEMMA4_E4B, NOMIC_EMBED_TEXT, ModelSpec, OllamaSimulator

SPEED = 20.0
MODEL = GEMMA4_E4B.name
EMBEDDING_MODEL = NOMIC_EMBED_TEXT.name
EVENING_HOUR = 20
STOP_S = 4.0

# What the demo changes in init's file, because its hours last seconds: (before, after).
SCALED = (
    ('retry_every = "5m"', 'retry_every = "3s"            # 5m in the file that init writes'),
    ("\n[models.", 'probe_every = "500ms"         # 5s unless set\n\n[models.'),
)


class DemoFailed(GPUQueueError):
    """The demo could not continue; `worker_log` is the last output of its worker process."""

    def __init__(self, message: str, worker_log: str = "") -> None:
        super().__init__(message)
        self.worker_log = worker_log


@dataclass(frozen=True, slots=True)
class Request:
    """The options of the demo; without `ollama_url` it simulates an Ollama."""

    ollama_url: str | None = None
    model: str | None = None
    keep: Path | None = None


class Stage:
    """The folder, the queue, the card and the worker of one run; leaving it stops and removes them all.

    Raises: UsageError for wrong options; DemoFailed if the worker does not start.
    """

    def __init__(self, request: Request) -> None:
        if request.ollama_url is not None and request.model is None:
            raise UsageError("--ollama needs --model; use a model that `ollama list` shows")
        self.model = request.model or MODEL
        self.spec: ModelSpec = replace(GEMMA4_E4B, name=self.model)
        self.simulator: OllamaSimulator | None = None
        self.embedding_model: str | None = EMBEDDING_MODEL
        self._request = request
        self._leaving = ExitStack()
        self._worker: subprocess.Popen[bytes] | None = None

    @property
    def is_simulated(self) -> bool:
        return self._request.ollama_url is None

    def __enter__(self) -> Stage:
        try:
            self._build()
        except BaseException:
            self._leaving.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leaving.close()

    def start_worker(self) -> None:
        """Start `gpuqueue worker`, with the simulated card's NVML under it where there is one."""
        command = ["--config", str(self.config_file), "worker", "--app", "gpuqueue.cli.demo.app:gq"]
        start = ["-m", "gpuqueue", *command]
        if self.simulator is not None:
            start = ["-m", "gpuqueue.simulators.nvml", "--card", self.simulator.control_url, *start]
        log = self._leaving.enter_context(self.worker_log.open("wb"))
        # In its own session, so that Ctrl-C reaches only the demo, which then stops the worker cleanly.
        self._worker = subprocess.Popen(
            [sys.executable, *start],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env=self._worker_environment(),
            start_new_session=True,
        )
        self._leaving.callback(self._end_worker)

    def check_worker(self) -> None:
        """Raise DemoFailed if the worker process has ended."""
        if self._worker is not None and self._worker.poll() is not None:
            raise self.failed(f"the worker process exited with status {self._worker.returncode}")

    def failed(self, message: str) -> DemoFailed:
        """Return the error with the last output of the worker."""
        try:
            lines = self.worker_log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return DemoFailed(message, "\n".join(lines[-15:]))

    def _build(self) -> None:
        if self._request.keep is not None:
            self.folder = self._request.keep.expanduser().absolute()
            self.folder.mkdir(parents=True, exist_ok=True)
            if (self.folder / "gpuqueue.db").exists():
                raise UsageError(f"{self.folder} has files of another run; use a new folder")
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="gpuqueue-demo-"))
            self._leaving.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.config_file = self.folder / "gpuqueue.toml"
        self.worker_log = self.folder / "worker.log"
        self.rfa_folder = self.folder / "rfa"
        self.rfa_folder.mkdir(exist_ok=True)
        self.config_file.write_text(self._real_file() if self._request.ollama_url else self._simulated_file(), encoding="utf-8")
        config = Config.load(self.config_file, environ={})
        self.gq = self._leaving.enter_context(GPUQueue(config=config, discover_plugins=False))
        self.rfa_tasks = tasks.register(self.gq)
        self.device = config.devices[0]
        self.backend = config.backends[0]

    def _simulated_file(self) -> str:
        card = SimulatedCard(speed=SPEED)
        self.simulator = self._leaving.enter_context(OllamaSimulator(card, [self.spec, NOMIC_EMBED_TEXT]))
        return scaled(
            initial_toml(
                timezone=evening_zone(datetime.now(UTC)),
                budget="5GB",
                margin="3GB",
                model=self.model,
                model_vram="4.5GB",
                ollama_url=self.simulator.url,
            )
        )

    def _real_file(self) -> str:
        url = str(self._request.ollama_url)
        found = ask_ollama(url, self.model, EMBEDDING_MODEL)
        if not found.has_embedding_model:
            self.embedding_model = None
        return initial_toml(
            timezone=evening_zone(datetime.now(UTC)),
            budget=found.budget_bytes,
            margin="0GB",
            model=self.model,
            model_vram=found.model_bytes,
            ollama_url=url,
        )

    def _worker_environment(self) -> dict[str, str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("GPUQUEUE_") and key != "OLLAMA_HOST"}
        environ["GPUQUEUE_CONFIG"] = str(self.config_file)
        root = str(Path(gpuqueue.__file__).resolve().parents[1])
        if root != sysconfig.get_path("purelib"):  # run from a checkout, which cannot be imported from the worker's folder
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH")]))
        return environ

    def _end_worker(self) -> None:
        worker = self._worker
        if worker is None:
            return
        for end in (
            worker.terminate,
            worker.terminate,
            worker.kill,
        ):  # a second SIGTERM returns running jobs to the queue at once
            if worker.poll() is not None:
                return
            end()
            try:
                worker.wait(STOP_S)
            except subprocess.TimeoutExpired:
                continue


def scaled(toml: str) -> str:
    """Turn init's file into the demo's. Raises: ValueError if a line to be changed is missing."""
    for before, after in SCALED:
        if before not in toml:
            raise ValueError(f"init's file no longer has {before!r}; adapt what the demo replaces")
        toml = toml.replace(before, after, 1)
    return toml


def evening_zone(now: datetime) -> str:
    """Name a time zone in which it is evening, outside the batch queue's working hours, whenever the demo is run."""
    ahead_h = (EVENING_HOUR - now.astimezone(UTC).hour + 12) % 24 - 12
    # The sign in these names is reversed: Etc/GMT-7 is seven hours ahead of Greenwich.
    return f"Etc/GMT{-ahead_h:+d}" if ahead_h else "Etc/GMT"
