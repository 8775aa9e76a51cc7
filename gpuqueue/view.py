"""Owns the view: one frozen snapshot of what decisions are made from, read from rows; decides nothing.

A worker and a web process build the same view from the same rows: device readings are published by workers.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import datetime

from gpuqueue.domain import Backend, DeviceView, QueueSettings, QueueView, View, WorkerInfo
from gpuqueue.settings import SharedSettings
from gpuqueue.store import Store, queries
from gpuqueue.store.life import proven_dead
from gpuqueue.store.outcomes import reservations
from gpuqueue.units import to_us


def largest_budget(settings: SharedSettings) -> int:
    """Return the largest budget of any device in bytes, 0 without a device."""
    return max((device.budget_bytes for device in settings.devices), default=0)


def read_view(store: Store, settings: SharedSettings, now: datetime) -> View:
    """Read the view at one moment, in one read transaction."""
    with store.snapshot() as connection:
        return build(connection, settings, now)


def build(connection: sqlite3.Connection, settings: SharedSettings, now: datetime) -> View:
    """Build the view from the rows that this connection sees."""
    now_us = to_us(now)
    workers = tuple(live_workers(connection, now_us=now_us))
    pauses = queries.pauses(connection, now_us=now_us)
    noted = queries.noted_reasons(connection)
    largest_bytes = largest_budget(settings)
    queues = {}
    for name in sorted(queries.queue_names(connection) | set(settings.queues)):
        queue = settings.queues.get(name) or QueueSettings(name)
        running, waiting = queries.queue_load(connection, queue, largest_bytes=largest_bytes)
        queues[name] = QueueView(
            settings=queue,
            paused=pauses.get(name),
            running_count=running,
            waiting_count=waiting,
            served=any(serves(worker, name) for worker in workers),
            noted_reasons=noted.get(name, ()),
        )
    taken = reservations(connection)
    sightings = queries.device_sightings(connection)
    devices = {}
    for device in settings.devices:
        reading, residents = sightings.get(device.name, (None, ()))
        mine = tuple(item for item in taken if item.device == device.name)
        devices[device.name] = DeviceView(device, reading, residents, mine)
    asked = queries.backends(connection)
    backends = {}
    for backend in settings.backends:
        row = asked.get(backend.name) or Backend(backend.name, "", True, 0, None, None, None, "")
        backends[backend.name] = replace(row, url=backend.url)
    return View(now=now, queues=queues, devices=devices, backends=backends, models=settings.models, workers=workers)


def live_workers(connection: sqlite3.Connection, *, now_us: int) -> list[WorkerInfo]:
    """Return the workers whose lease has not ended and whose death is not proven."""
    found = []
    for row in queries.worker_rows(connection, now_us=now_us):
        if row.info.alive and proven_dead(row.runtime_dir, row.info.id) is None:
            found.append(row.info)
    return found


def serves(worker: WorkerInfo, queue: str) -> bool:
    return worker.alive and (worker.queues is None or queue in worker.queues)
