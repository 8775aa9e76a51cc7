"""Owns a small view for the policies' tests, and the parts to change in it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from gpuqueue.domain import (
    Backend,
    BackendSettings,
    DeviceSettings,
    DeviceView,
    Job,
    Lease,
    ModelSettings,
    QueueSettings,
    QueueView,
    Reservation,
    State,
    View,
)

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
    there = Backend("ollama", "http://127.0.0.1:11434", True, 0, None, None, NOW, "")
    return replace(there, **changes)


def view(*queues: QueueView, devices: tuple[DeviceView, ...] = (DeviceView(GPU0),), ollama: Backend | None = None) -> View:
    """A view of the given queues; those of the scenario, idle, where none are given."""
    found = queues or (QueueView(REALTIME), QueueView(BATCH), QueueView(MAIL))
    return View(
        now=NOW,
        queues={item.settings.name: item for item in found},
        devices={item.settings.name: item for item in devices},
        backends={"ollama": ollama or backend()},
        models=MODELS,
    )


def job(id: int = 1, **changes: Any) -> Job:
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
    return replace(made, **changes)


def reservation(job_id: int = 7, *, model: str = "gemma4:e4b", bytes: int = 4_500_000_000, running: bool = True) -> Reservation:
    return Reservation(job_id, 1, "ai-batch", model, "gpu0", bytes, running, "w")
