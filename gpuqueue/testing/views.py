"""Makes up views for tests of policies, and the parts to change in them; reads no database and no clock.

`view()` is the scenario of `gpuqueue init`, idle: three queues, a card of 5 GB, an Ollama. Pass it other queues, devices or
backends, made with the functions here or with `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpuqueue.domain.device import Reading
from gpuqueue.domain.job import Job, Lease, State
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, QueueSettings
from gpuqueue.domain.view import Backend, DeviceView, QueueView, Reservation, View

__all__ = [
    "BATCH",
    "GB",
    "GPU0",
    "MAIL",
    "MODELS",
    "NOW",
    "OLLAMA",
    "REALTIME",
    "backend",
    "device",
    "job",
    "lease",
    "reservation",
    "view",
]

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
GB = 10**9
OLLAMA = BackendSettings()
REALTIME = QueueSettings("ai-realtime", gpu=True, concurrency=1, when_unavailable="reject", backend="ollama")
BATCH = QueueSettings("ai-batch", gpu=True, concurrency=1, yields_to=("ai-realtime",), when_unavailable="retry", backend="ollama")
MAIL = QueueSettings("mail")
MODELS = {
    "gemma4:e4b": ModelSettings("gemma4:e4b", 4_500_000_000),
    "nomic-embed-text": ModelSettings("nomic-embed-text", 500_000_000),
}
GPU0 = DeviceSettings("gpu0", budget_bytes=5 * GB)


def backend(**changes: Any) -> Backend:
    """Make a backend that was just checked and is available; make another with `backend(available=False, error="…")`."""
    there = Backend("ollama", "http://127.0.0.1:11434", True, 0, None, None, NOW, "")
    return replace(there, **changes)


def view(*queues: QueueView, devices: tuple[DeviceView, ...] = (DeviceView(GPU0),), ollama: Backend | None = None) -> View:
    """Make a view of the given queues; by default those of the scenario, idle."""
    found = queues or (QueueView(REALTIME), QueueView(BATCH), QueueView(MAIL))
    return View(
        now=NOW,
        queues={item.settings.name: item for item in found},
        devices={item.settings.name: item for item in devices},
        backends={"ollama": ollama or backend()},
        models=MODELS,
    )


def device(settings: DeviceSettings = GPU0, *reservations: Reservation, **reading: Any) -> DeviceView:
    """Make a device that was just read; pass `total_bytes`, `free_bytes`, `temperature_c`, … of the reading."""
    return DeviceView(settings, Reading(NOW, **reading), reservations=reservations)


def job(id: int = 1, **changes: Any) -> Job:
    """Make a job that waits in `ai-batch` for its first attempt."""
    made = Job(
        id=id,
        queue="ai-batch",
        task="ollama.generate",
        state=State.AVAILABLE,
        priority=0,
        attempt=0,
        max_attempts=3,
        lease=0,
        crashes=0,
        enqueued_at=NOW,
        scheduled_at=NOW,
        started_at=None,
        finished_at=None,
        expires_at=None,
        timeout_s=None,
        worker_id=None,
        model="",
        demand_bytes=0,
        device=None,
        reserved_bytes=0,
        waiting_for=None,
        cancel_requested=False,
        arguments={"model": "gemma4:e4b", "prompt": "Hi"},
        tags=(),
        error=None,
    )
    return replace(made, **changes)


def lease(**changes: Any) -> Lease:
    """Make the lease of a first attempt of three."""
    made = Lease(
        job_id=1,
        lease=1,
        queue="ai-batch",
        task="ollama.generate",
        attempt=1,
        max_attempts=3,
        arguments={},
        timeout_s=None,
        started_at=NOW,
    )
    return made._replace(**changes)


def reservation(job_id: int = 7, *, model: str = "gemma4:e4b", bytes: int = 4_500_000_000, running: bool = True) -> Reservation:
    """Make the reservation of a job on `gpu0`; not `running` means that its memory is being released."""
    return Reservation(job_id, 1, "ai-batch", model, "gpu0", bytes, running, "w")
