"""Reads the current work: the running jobs, the next one, and when one is due; changes nothing."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from gpuqueue.domain.job import Job, RunningAttempt
from gpuqueue.domain.units import from_us
from gpuqueue.store.sqlite.claims import classes
from gpuqueue.store.sqlite.jobs import DEMAND_CLASS_BYTES, NEVER_FITS
from gpuqueue.store.sqlite.queries import get_job

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

# A job of a queue without a device names its model only in its arguments.
RUNNING = (
    "SELECT id, queue, task, CASE WHEN demand_model <> '' THEN demand_model "
    "WHEN json_type(arguments, '$.model') = 'text' THEN json_extract(arguments, '$.model') ELSE '' END, "
    "lease, attempt, max_attempts, started_at, worker_id, device, progress, progress_note, output_tokens, "
    "cancel_requested, preempt_lease IS lease FROM jobs WHERE state = 'running' AND queue = ? LIMIT ?"
)
FIRST_WAITING = (
    "SELECT priority, scheduled_at, id FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = ? "
    "AND demand_class = ? ORDER BY priority DESC, scheduled_at, id LIMIT 1"
)
NEXT_DUE = "SELECT scheduled_at FROM jobs WHERE state IN ('scheduled', 'retryable') AND queue = ? ORDER BY scheduled_at LIMIT 1"


def running_attempts(connection: Statements, queue: str, *, limit: int) -> list[RunningAttempt]:
    """Return running jobs of a queue, at most `limit`, in no promised order."""
    return [
        RunningAttempt(
            id=id_,
            queue=queue,
            task=task,
            model=model,
            lease=lease,
            attempt=attempt,
            max_attempts=max_attempts,
            started_at=None if started_at is None else from_us(started_at),
            worker_id=worker_id,
            device=device,
            progress=progress,
            progress_note=note or "",
            output_tokens=output_tokens,
            cancel_requested=bool(cancelled),
            preempt_requested=bool(preempted),
        )
        for (
            id_, queue, task, model, lease, attempt, max_attempts, started_at, worker_id, device,
            progress, note, output_tokens, cancelled, preempted,
        ) in connection.execute(RUNNING, (queue, limit))
    ]  # fmt: skip


def first_waiting(connection: Statements, queue: str, *, largest_bytes: int) -> Job | None:
    """Return the first available job of a queue, None if none is waiting.

    A job that fits no device is returned only if there is no other.
    """
    for most_bytes in (largest_bytes, NEVER_FITS * DEMAND_CLASS_BYTES):
        heads = [
            connection.execute(FIRST_WAITING, (queue, model, size)).fetchone()
            for model, size in classes(connection, queue, largest_bytes=most_bytes)
        ]
        found = min(((-priority, at, job_id) for priority, at, job_id in filter(None, heads)), default=None)
        if found is not None:
            return get_job(connection, found[2])
    return None


def next_due(connection: Statements, queue: str) -> datetime | None:
    """Return when the next scheduled or postponed job of a queue is due."""
    row = connection.execute(NEXT_DUE, (queue,)).fetchone()
    return None if row is None else from_us(row[0])
