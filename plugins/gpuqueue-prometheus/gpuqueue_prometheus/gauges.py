"""Reads the gauges from the queue at the time of a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import gpuqueue
from gpuqueue import GPUQueue
from gpuqueue.plugins import DeviceView, State
from gpuqueue_prometheus import metrics
from gpuqueue_prometheus.metrics import Sample

STALE_S = 60.0  # an older reading says nothing about the present


def gauges(gq: GPUQueue) -> Iterator[Sample]:
    """Read every gauge. Raises: StoreError."""
    view = gq.view()
    counts = gq.counts()
    yield Sample(metrics.BUILD, (gpuqueue.__version__,), 1)
    yield Sample(metrics.WORKERS, (), len(view.workers))
    for name in sorted(counts.keys() | view.queues.keys()):
        for state in State:
            yield Sample(metrics.JOBS, (name, str(state)), counts.get(name, {}).get(state, 0))
    for name, queue in view.queues.items():
        yield Sample(metrics.QUEUE_SERVED, (name,), queue.served)
    for name, holds in gq.holds().items():
        for reason in sorted({hold.reason for hold in holds}):
            yield Sample(metrics.QUEUE_HELD, (name, reason), 1)
    for device in view.devices.values():
        yield from device_gauges(device, view.now)
    for backend in view.backends.values():
        yield Sample(metrics.BACKEND_UP, (backend.name,), backend.available)
    for service in gq.services():
        if service.worker_id is not None:
            yield Sample(metrics.SERVICE_UP, (service.name,), not service.status.get("error"))
    with gq.read() as reader:
        followers = reader.followers()
    for name, unread_since in followers.items():
        lag_s = 0.0 if unread_since is None else max(0.0, (gq.now() - unread_since).total_seconds())
        yield Sample(metrics.FOLLOWER_LAG, (name,), lag_s)


def device_gauges(device: DeviceView, now: datetime) -> Iterator[Sample]:
    """Read one device's gauges, as known at `now`."""
    name = device.settings.name
    yield Sample(metrics.VRAM_BUDGET, (name,), device.settings.budget_bytes)
    yield Sample(metrics.VRAM_RESERVED, (name,), device.reserved_bytes)
    models: dict[str, int] = {}
    for resident in device.residents:
        models[resident.model] = models.get(resident.model, 0) + resident.vram_bytes
    for model, vram_bytes in models.items():
        yield Sample(metrics.MODEL_VRAM, (name, model), vram_bytes)
    # A running job's model is not measured, and a model kept warm without a job has no reservation.
    yield Sample(metrics.VRAM_OWN, (name,), max(device.reserved_bytes, sum(models.values())))
    reading = device.reading
    if reading is None or reading.age_s(now) > STALE_S:
        return
    yield Sample(metrics.DEVICE_UP, (name,), reading.lost is None)
    if reading.total_bytes is not None:
        yield Sample(metrics.VRAM_TOTAL, (name,), reading.total_bytes)
        if reading.free_bytes is not None:
            yield Sample(metrics.VRAM_USED, (name,), reading.total_bytes - reading.free_bytes)
