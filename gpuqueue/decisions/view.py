"""Builds the view, one frozen snapshot that decisions are made from, from rows; decides nothing.

A worker and a web process build the same view from the same rows, because workers publish device readings.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from gpuqueue.config.shared import SharedSettings
from gpuqueue.contract.reads import Reads
from gpuqueue.domain.explanation import JobThreads, QueueContext, RunningJob
from gpuqueue.domain.job import WAITING, Job, State
from gpuqueue.domain.memory import whole_budget
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import Backend, DeviceView, QueueView, Sighting, View, WorkerInfo
from gpuqueue.domain.yielding import yielded_to
from gpuqueue.store.job_threads import threads_of
from gpuqueue.store.liveness import alive_here, proven_dead

STALE_S = 30.0  # after the time at which an unavailable backend was to be checked again, or before that of its last check


def largest_budget(settings: SharedSettings) -> int:
    """Return the largest budget of any device in bytes, 0 without a device."""
    return max((device.budget_bytes for device in settings.devices), default=0)


def build(reads: Reads, settings: SharedSettings, now: datetime) -> View:
    """Build the view from one read transaction."""
    now_us = to_us(now)
    workers = tuple(live_workers(reads, now_us=now_us))
    pauses = reads.pauses(now_us=now_us)
    noted = reads.noted_reasons()
    largest_bytes = largest_budget(settings)
    queues = {}
    levels = reads.rate_levels()
    for name in sorted(reads.queue_names() | set(settings.queues)):
        queue = settings.queues.get(name) or QueueSettings(name)
        running, waiting = reads.queue_load(queue, largest_bytes=largest_bytes)
        queues[name] = QueueView(
            settings=queue,
            paused=pauses.get(name),
            running_count=running,
            waiting_count=waiting,
            served=any(serves(worker, name) for worker in workers),
            noted_reasons=noted.get(name, ()),
            rate_before=levels[name][0] if name in levels else None,
            rate_at=levels[name][1] if name in levels else None,
        )
    taken = reads.reservations()
    sightings = reads.sightings()
    devices = {}
    for device in settings.devices:
        seen = sightings.get(device.name) or Sighting()
        mine = tuple(item for item in taken if item.device == device.name)
        devices[device.name] = DeviceView(
            device, seen.reading, seen.residents, mine, seen.model, seen.model_since, seen.thrown, seen.restarted
        )
    asked = reads.backends()
    backends = {}
    for backend in settings.backends:
        row = asked.get(backend.name) or Backend(backend.name, "", True, 0, None, None, None, "")
        backends[backend.name] = replace(
            _unless_stale(row, now), url=backend.url, device=backend.device, num_parallel=backend.num_parallel
        )
    return View(
        now=now,
        queues=queues,
        devices=devices,
        backends=backends,
        models=settings.models,
        workers=workers,
        estimates=reads.estimates(),
        placement=settings.placement,
    )


def _unless_stale(row: Backend, now: datetime) -> Backend:
    """Treat a backend as available again when no worker has checked it for long, or the clock was set back."""
    if row.available or row.retry_at is None:
        return row
    checked_at = row.checked_at or now
    if (now - row.retry_at).total_seconds() <= STALE_S and (checked_at - now).total_seconds() <= STALE_S:
        return row
    return Backend(row.name, "", True, row.failures, None, None, None, "")


def queue_context(reads: Reads, job: Job, view: View) -> QueueContext:
    """Read the work ahead of a waiting job (in its queue, in those it yields to, on its devices) and its queue's running jobs."""
    if job.state not in WAITING:
        return QueueContext()
    queue = view.queues[job.queue].settings
    first = yielded_to(queue, view)
    largest_bytes = whole_budget(view)
    ahead = [work for name in sorted(first) for work in reads.work_ahead(name, None, largest_bytes=largest_bytes)]
    others = [name for name, item in view.queues.items() if queue.gpu and item.settings.gpu and name not in (job.queue, *first)]
    for name in (job.queue, *others):
        if job.queue not in yielded_to(view.queues[name].settings, view):
            ahead += reads.work_ahead(name, job, largest_bytes=largest_bytes)
    busy = () if queue.gpu or job.state is not State.AVAILABLE else tuple(_busy(reads, job.queue, view))
    return QueueContext(tuple(ahead), tuple(reads.running_jobs(job.queue)), busy)


def _busy(reads: Reads, queue: str, view: View) -> list[RunningJob]:
    """Return the jobs in the threads that may run a queue's jobs, if none is free and all are known; else none."""
    known = worker_threads(reads, now_us=to_us(view.now))
    serving = [known.get(worker.id) for worker in view.workers if serves(worker, queue)]
    ids = [item.job_id for threads in serving if threads is not None for item in threads.pool]
    if None in serving or not all(ids):
        return []
    if not ids:
        return []
    running = {item.id: item for name in view.queues for item in reads.running_jobs(name)}
    return [running.get(job_id) or RunningJob(job_id, "", None) for job_id in ids]


def worker_threads(reads: Reads, *, now_us: int) -> dict[str, JobThreads | None]:
    """Return the threads of the workers with a current lease: {worker: threads}, None for one whose threads are not known."""
    return {row.info.id: threads_of(row.runtime_dir, row.info.id) for row in reads.workers(now_us=now_us) if row.info.alive}


def live_workers(reads: Reads, *, now_us: int) -> list[WorkerInfo]:
    """Return the workers with a current lease that are not proven dead.

    A clock that stepped may have ended a lease that its worker is about to extend: one that holds its liveness file is given
    another lease.
    """
    found = []
    for row in reads.workers(now_us=now_us):
        if row.info.alive:
            if proven_dead(row.runtime_dir, row.info.id) is None:
                found.append(row.info)
        elif (now_us - to_us(row.info.expires_at)) / 1e6 < row.lease_s and alive_here(row.runtime_dir, row.info.id):
            found.append(replace(row.info, alive=True))
    return found


def serves(worker: WorkerInfo, queue: str) -> bool:
    return worker.alive and (worker.queues is None or queue in worker.queues)
