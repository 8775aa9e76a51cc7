"""Builds a job's timeline: what happened when, from its row and its interrupted attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gpuqueue.domain.job import Job, State

__all__ = ["progress", "timeline_of"]


def timeline_of(job: Job, attempts: Sequence[Mapping[str, Any]], *, now: datetime) -> list[tuple[datetime, str]]:
    """List what happened to a job and what will happen, in order of time; `attempts` as `queries.timeline` returns them."""
    moments: list[tuple[datetime, str]] = [(job.enqueued_at, "enqueued")]
    for attempt in attempts:
        why = f": {' '.join(attempt['error'].message.split())}" if attempt["error"] else ""
        if attempt["started_at"]:
            moments.append((attempt["started_at"], f"attempt {attempt['attempt']} started on {attempt['worker']}"))
        moments.append((attempt["finished_at"], f"attempt {attempt['attempt']} {attempt['outcome']}{why}"))
    told = {moment for moment, _ in moments}
    if job.started_at and job.started_at not in told:
        moments.append((job.started_at, f"attempt {job.attempt} started" + (f" on {job.worker_id}" if job.worker_id else "")))
    if job.finished_at:
        if not any(attempt["finished_at"] == job.finished_at for attempt in attempts):
            moments.append((job.finished_at, str(job.state)))
    elif job.scheduled_at > now:
        moments.append((job.scheduled_at, "due"))
    if job.expires_at and not job.finished_at:
        moments.append((job.expires_at, "expires if still waiting"))
    return sorted(moments, key=lambda item: item[0])


def progress(job: Job) -> str:
    """Format a job's reported progress: `40 % (page 4)`; "" when it reported none or has completed."""
    if job.progress is None or job.state is State.COMPLETED:
        return ""
    # Rounded down, so that 100 % means done.
    percent = int(job.progress * 100 + 1e-9)
    return f"{percent} %" + (f" ({' '.join(job.progress_note.split())})" if job.progress_note else "")
