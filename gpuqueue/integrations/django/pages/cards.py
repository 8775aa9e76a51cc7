"""Shows the cards, backends, services and workers as the workers last reported them; reads no card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gpuqueue.domain.device import Reading
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.estimates import left_s
from gpuqueue.domain.job import State
from gpuqueue.domain.units import format_duration, format_size
from gpuqueue.domain.view import Backend, DeviceView, ServiceInfo, View
from gpuqueue.integrations.django.pages.jobs import rows_of
from gpuqueue.integrations.django.pages.sources import keys_of
from gpuqueue.integrations.django.pages.wording import Moment, held

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

__all__ = ["cards_page", "workers_page"]

RUNNING_SHOWN = 500


def cards_page(gq: DjangoQueue) -> dict[str, Any]:
    """Show the cards, the backends and the services."""
    view = gq.view()
    return {
        "cards": [_card(gq, device, view) for device in view.devices.values()],
        "backends": [_backend(backend, view) for backend in view.backends.values()],
        "services": [_service(service, view) for service in gq.services()],
    }


def workers_page(gq: DjangoQueue) -> dict[str, Any]:
    """Show the running workers, and the jobs of each."""
    view = gq.view()
    running = [handle.record for handle in gq.jobs(state=State.RUNNING, limit=RUNNING_SHOWN)]
    shown = {
        worker.id: {
            "worker": worker,
            "pid": str(worker.pid),
            "serves": "all queues" if worker.queues is None else ", ".join(worker.queues),
            "since": Moment(worker.started_at, view.now),
            "lease_ends": Moment(worker.expires_at, view.now),
            "troubles": worker.troubles,
            "jobs": rows_of(gq, [job for job in running if job.worker_id == worker.id]),
            "holds": [f"{queue}: {held(hold, now=view.now)}" for queue, holds in sorted(worker.holds.items()) for hold in holds],
        }
        for worker in view.workers
    }
    orphans = [job for job in running if job.worker_id not in shown]
    return {"workers": list(shown.values()), "orphans": rows_of(gq, orphans), "worker_command": gq.worker_command("")}


def _stay(keep_warm_s: float | Literal["auto"]) -> str:
    return "as long as another job is expected soon" if keep_warm_s == "auto" else f"for {format_duration(keep_warm_s)}"


def _card(gq: DjangoQueue, device: DeviceView, view: View) -> dict[str, Any]:
    settings, reading, key_of = device.settings, device.reading, keys_of(gq.alias)
    return {
        "name": settings.name,
        "card": (reading and reading.name) or "",
        "reserved_bytes": str(device.reserved_bytes),  # as a string, which no locale changes
        "budget_bytes": str(settings.budget_bytes),
        "reserved": format_size(device.reserved_bytes),
        "budget": format_size(settings.budget_bytes),
        "margin": format_size(settings.margin_bytes),
        "slots": settings.slots,
        "max_models": settings.max_models,
        "keep_warm": _stay(settings.keep_warm_s),
        "memory": _memory(reading),
        "unknown": _unknown(reading),
        "is_lost": bool(reading and reading.lost),
        "condition": [] if reading is None else _condition(reading),
        "read": None if reading is None else Moment(reading.at, view.now),
        "residents": [
            {
                "model": item.model,
                "size": format_size(item.size_bytes),
                "outside": format_size(item.size_bytes - item.vram_bytes) if item.size_bytes > item.vram_bytes else "",
            }
            for item in device.residents
        ],
        "reservations": [
            {
                "key": key_of(item.job_id),
                "job_id": str(item.job_id),
                "item": item,
                "size": format_size(item.reserved_bytes),
                "rest": _rest(left_s(view.estimates, item, view.now) if item.running else None),
            }
            for item in device.reservations
        ],
    }


def _memory(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None or reading.lost or reading.total_bytes is None or reading.free_bytes is None:
        return None
    used_bytes = reading.total_bytes - reading.free_bytes
    return {
        "used_bytes": str(used_bytes),
        "total_bytes": str(reading.total_bytes),
        "used": format_size(used_bytes),
        "free": format_size(reading.free_bytes),
        "total": format_size(reading.total_bytes),
    }


def _unknown(reading: Reading | None) -> str:
    """Explain why the card's memory is unknown, "" if it is known."""
    if reading is None:
        return "no worker has read the card yet"
    if reading.lost:
        return f"lost: {reading.lost}"
    return "unknown (no driver on the worker's host); only the budget limits jobs" if _memory(reading) is None else ""


def _condition(reading: Reading) -> list[str]:
    figures = (("{} % busy", reading.utilisation_percent), ("{} °C", reading.temperature_c), ("{:.0f} W", reading.power_w))
    return [words.format(value) for words, value in figures if value is not None]


def _rest(rest_s: float | None) -> str:
    return "" if rest_s is None else f"done in about {format_duration(max(1, round(rest_s)))}"


def _backend(backend: Backend, view: View) -> dict[str, Any]:
    return {
        "name": backend.name,
        "url": shown_url(backend.url),
        "available": backend.available,
        "asked": Moment(backend.checked_at, view.now) if backend.checked_at else None,
        "away_since": Moment(backend.since, view.now) if backend.since and not backend.available else None,
        "retry_at": Moment(backend.retry_at, view.now) if backend.retry_at and not backend.available else None,
        "error": backend.error,
    }


def _service(service: ServiceInfo, view: View) -> dict[str, Any]:
    return {
        "name": service.name,
        "worker_id": service.worker_id,
        "status": [(key, value) for key, value in service.status.items() if isinstance(value, str | int | float)],
        "noted": Moment(service.noted_at, view.now) if service.noted_at else None,
    }
