"""Formats the figures of `top` as plain lines and as JSON, for use without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from gpuqueue.cli.shapes import hold_shape
from gpuqueue.cli.top_figures import DeviceFigures, Figures, JobFigures
from gpuqueue.cli.top_words import edge_sentence, job_sentence, models_words, one_line, percent, queue_sentence, service_sentence
from gpuqueue.domain.moments import iso, since
from gpuqueue.domain.units import counted, format_duration, format_size


def lines(figures: Figures) -> Iterator[str]:
    """Yield everything as lines, each starting with what it is about."""
    yield f"{iso(figures.now)}  {counted(len(figures.workers), 'worker')}, database {figures.database}"
    for queue in figures.queues:
        counts = {
            "waiting": queue.waiting_count,
            "running": queue.running_count,
            "completed": queue.completed_count,
            "discarded": queue.discarded_count,
            "cancelled": queue.cancelled_count,
        }
        numbers = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "empty"
        yield f"queue {queue_sentence(queue, figures.now)} ({numbers})"
    for job in figures.jobs:
        yield _job_line(job, figures)
    if figures.more_running:
        yield f"and {figures.more_running} more running jobs"
    for device in figures.devices:
        yield f"device {_device_line(device, figures)}"
    for edge in figures.edges:
        yield f"window {edge_sentence(edge, figures.now)}"
    for service in figures.services:
        yield f"service {service_sentence(service, figures.now)}"


def _job_line(job: JobFigures, figures: Figures) -> str:
    parts = [job_sentence(job, figures.now)]
    if job.progress is not None:
        parts.append(f"{percent(job.progress)} %")
    if job.tokens_per_s is not None:
        parts.append(f"{job.tokens_per_s:.1f} tokens/s")
    if job.elapsed_s is not None:
        parts.append(f"for {format_duration(job.elapsed_s)}")
    return ", ".join(parts)


def _device_line(device: DeviceFigures, figures: Figures) -> str:
    parts = [f"{format_size(device.reserved_bytes)} of {format_size(device.budget_bytes)} budget reserved"]
    parts.append(models_words(device))
    if device.others_bytes is not None:
        parts.append(f"others hold {format_size(device.others_bytes)}")
    if device.temperature_c is not None:
        parts.append(f"{device.temperature_c} °C")
    if device.utilisation_percent is not None:
        parts.append(f"{device.utilisation_percent} % busy")
    parts.append("not read yet" if device.read_at is None else f"read {since(device.read_at, now=figures.now)}")
    lost = "" if device.lost is None else f"LOST, {one_line(device.lost)}; "
    return f"{device.name}: {lost}{', '.join(parts)}"


def shape(figures: Figures) -> dict[str, Any]:
    """Return everything as JSON, with the stable keys listed in the help of `top`."""
    return {
        "at": iso(figures.now),
        "database": figures.database,
        "workers": list(figures.workers),
        "queues": [
            {
                "name": queue.name,
                "state": queue.state,
                "waiting": queue.waiting_count,
                "running": queue.running_count,
                "completed": queue.completed_count,
                "discarded": queue.discarded_count,
                "cancelled": queue.cancelled_count,
                "reasons": [hold_shape(hold) for hold in queue.holds],
            }
            for queue in figures.queues
        ],
        "jobs": [_job_shape(job) for job in figures.jobs],
        "more_running": figures.more_running,
        "devices": [
            {
                **{name: value for name, value in asdict(device).items() if name not in ("promised_bytes", "cleaning")},
                "read_at": iso(device.read_at),
            }
            for device in figures.devices
        ],
        "windows": [{"queue": edge.queue, "at": iso(edge.at), "change": edge.change} for edge in figures.edges],
        "services": [
            {
                "name": service.name,
                "worker": service.worker_id,
                "lag_s": service.lag_s,
                "error": service.error,
                "noted_at": iso(service.noted_at),
            }
            for service in figures.services
        ],
    }


def _job_shape(job: JobFigures) -> dict[str, Any]:
    return {
        "id": job.id,
        "queue": job.queue,
        "task": job.task,
        "model": job.model or None,
        "running": job.is_running,
        "reasons": [hold_shape(hold) for hold in job.waits_for],
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "started_at": iso(job.started_at),
        "worker": job.worker_id,
        "device": job.device,
        "stopping": job.stopping or None,
        "progress": job.progress,
        "progress_note": job.note or None,
        "output_tokens": job.output_tokens,
        "tokens_per_s": job.tokens_per_s,
        "elapsed_s": job.elapsed_s,
        "left_s": job.left_s,
    }
