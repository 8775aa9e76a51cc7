"""Builds the JSON that commands print: stable keys, datetimes as ISO 8601 in UTC, sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.estimates import left_s
from gpuqueue.domain.explanation import Expectation, Explanation
from gpuqueue.domain.findings import Finding
from gpuqueue.domain.job import Job, State
from gpuqueue.domain.model_health import ModelHealth
from gpuqueue.domain.moments import iso
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Backend, DeviceView, PartInfo, Pause, ServiceInfo, View, WorkerInfo

__all__ = [
    "attempt_shape",
    "device_shape",
    "expectation_shape",
    "explanation_shape",
    "finding_shape",
    "job_shape",
    "model_shape",
    "resident_shape",
    "service_shape",
    "status_shape",
]


def job_shape(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "queue": job.queue,
        "task": job.task,
        "state": str(job.state),
        "priority": job.priority,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "crashes": job.crashes,
        "enqueued_at": iso(job.enqueued_at),
        "scheduled_at": iso(job.scheduled_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "expires_at": iso(job.expires_at),
        "timeout_s": job.timeout_s,
        "worker": job.worker_id,
        "model": job.model or None,
        "demand_bytes": job.demand_bytes,
        "device": job.device,
        "reserved_bytes": job.reserved_bytes,
        "waiting_for": job.waiting_for,
        "cancel_requested": job.cancel_requested,
        "progress": job.progress,
        "progress_note": job.progress_note or None,
        "tags": list(job.tags),
        "arguments": dict(job.arguments),
        "error": error_shape(job.error),
    }


def error_shape(error: Any) -> dict[str, Any] | None:
    return None if error is None else {"code": error.code, "message": error.message, "traceback": error.traceback}


def attempt_shape(attempt: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **attempt,
        "started_at": iso(attempt["started_at"]),
        "finished_at": iso(attempt["finished_at"]),
        "error": error_shape(attempt["error"]),
    }


def finding_shape(finding: Finding) -> dict[str, Any]:
    return {"check": finding.check, "detail": finding.detail, "mend": finding.mend}


def hold_shape(hold: Hold) -> dict[str, Any]:
    return {"reason": hold.reason, "detail": hold.detail, "until": iso(hold.until), "advice": hold.advice or None}


def explanation_shape(explanation: Explanation) -> dict[str, Any]:
    return {
        "job_id": explanation.job_id,
        "state": str(explanation.state),
        "at": iso(explanation.at),
        "summary": explanation.summary,
        "reasons": [hold_shape(hold) for hold in explanation.reasons],
        **expectation_shape(explanation.expected),
        "advice": explanation.advice or None,
        "text": str(explanation),
    }


def expectation_shape(expected: Expectation | None) -> dict[str, Any]:
    return {
        "position": expected.position if expected else None,
        "expected_start": iso(expected.start_at) if expected else None,
        "expected_start_earliest": iso(expected.start_earliest) if expected else None,
        "expected_start_latest": iso(expected.start_latest) if expected else None,
        "expected_finish": iso(expected.finish_at) if expected else None,
        "expected_finish_earliest": iso(expected.finish_earliest) if expected else None,
        "expected_finish_latest": iso(expected.finish_latest) if expected else None,
    }


def status_shape(
    view: View,
    *,
    database: str,
    counts: Mapping[str, Mapping[str, int]],
    holds: Mapping[str, Sequence[Hold]],
    expected: Mapping[str, Expectation],
) -> dict[str, Any]:
    return {
        "at": iso(view.now),
        "database": database,
        "queues": [
            {
                "name": name,
                "gpu": queue.settings.gpu,
                "concurrency": queue.settings.concurrency,
                "served": queue.served,
                "counts": {str(state): counts.get(name, {}).get(state, 0) for state in State},
                "paused": pause_shape(queue.paused),
                "holds": [hold_shape(hold) for hold in holds.get(name, ())],
                "expected_end": iso(expected[name].finish_at) if name in expected else None,
                "expected_end_earliest": iso(expected[name].finish_earliest) if name in expected else None,
                "expected_end_latest": iso(expected[name].finish_latest) if name in expected else None,
            }
            for name, queue in view.queues.items()
        ],
        "workers": [worker_shape(worker) for worker in view.workers],
        "devices": [device_shape(device, view) for device in view.devices.values()],
        "backends": [backend_shape(backend) for backend in view.backends.values()],
    }


def service_shape(service: ServiceInfo) -> dict[str, Any]:
    return {
        "name": service.name,
        "worker": service.worker_id,
        "since": iso(service.since),
        "noted_at": iso(service.noted_at),
        "says": dict(service.status),
    }


def pause_shape(pause: Pause | None) -> dict[str, Any] | None:
    if pause is None:
        return None
    return {"by": pause.by, "reason": pause.reason, "at": iso(pause.at), "until": iso(pause.until)}


def worker_shape(worker: WorkerInfo) -> dict[str, Any]:
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "queues": None if worker.queues is None else list(worker.queues),
        "started_at": iso(worker.started_at),
        "expires_at": iso(worker.expires_at),
        "parts": [part_shape(part) for part in worker.parts],
    }


def part_shape(part: PartInfo) -> dict[str, Any]:
    return {
        "name": part.name,
        "alive": part.alive,
        "busy_s": None if part.busy_s is None else round(part.busy_s, 3),
        "last_at": iso(from_us(part.last_at_us)),
    }


def model_shape(name: str, found: ModelHealth) -> dict[str, Any]:
    return {"name": name, "health": found.state, "needed_bytes": found.needed_bytes, "detail": found.detail}


def device_shape(device: DeviceView, view: View) -> dict[str, Any]:
    settings = device.settings
    reading = device.reading
    return {
        "name": settings.name,
        "budget_bytes": settings.budget_bytes,
        "margin_bytes": settings.margin_bytes,
        "max_models": settings.max_models,
        "slots": settings.slots,
        "keep_warm_s": settings.keep_warm_s,
        "reserved_bytes": device.reserved_bytes,
        "reading": reading_shape(reading),
        "residents": [resident_shape(item) for item in device.residents],
        "reservations": [
            {
                "job_id": item.job_id,
                "queue": item.queue,
                "model": item.model or None,
                "reserved_bytes": item.reserved_bytes,
                "running": item.running,
                "worker": item.worker_id,
                "expected_rest_s": left_s(view.estimates, item, view.now) if item.running else None,
            }
            for item in device.reservations
        ],
    }


def resident_shape(resident: Resident) -> dict[str, Any]:
    return {"model": resident.model, "size_bytes": resident.size_bytes, "vram_bytes": resident.vram_bytes}


def reading_shape(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    return {
        "at": iso(reading.at),
        "card": reading.name,
        "total_bytes": reading.total_bytes,
        "free_bytes": reading.free_bytes,
        "utilisation_percent": reading.utilisation_percent,
        "temperature_c": reading.temperature_c,
        "power_w": reading.power_w,
        "lost": reading.lost,
    }


def backend_shape(backend: Backend) -> dict[str, Any]:
    return {
        "name": backend.name,
        "url": shown_url(backend.url),
        # Not checked yet: neither available nor unavailable.
        "available": None if backend.checked_at is None and backend.available else backend.available,
        "checked_at": iso(backend.checked_at),
        "away_since": None if backend.available else iso(backend.since),
        "retry_at": None if backend.available else iso(backend.retry_at),
        "error": backend.error or None,
    }
