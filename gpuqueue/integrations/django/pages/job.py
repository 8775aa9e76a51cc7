"""Shows one job: every field, its outcome, its log, and the reason for its state; changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.errors import UnknownJob
from gpuqueue.domain.job import FINISHED, Job, State
from gpuqueue.domain.timeline import progress, timeline_of
from gpuqueue.domain.units import format_duration, format_size
from gpuqueue.integrations.django.pages.sources import keys_of
from gpuqueue.integrations.django.pages.wording import NOTHING, Moment, Text, as_json, held, next_step

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

__all__ = ["job_page"]

RETRIED = (State.DISCARDED, State.CANCELLED, State.RETRYABLE, State.SCHEDULED)
SHOWN_LINES = 1000  # of its log, the newest


def job_page(gq: DjangoQueue, name: str, *, whole: bool) -> dict[str, Any]:
    """Show a job, with long texts cut unless `whole`. Raises: UnknownJob."""
    job_id = int(name) if name.isascii() and name.isdecimal() and len(name) < 19 else 0
    if not job_id:
        raise UnknownJob(job_id)
    with gq.store.snapshot() as reads:
        job = reads.job(job_id)
        ending = reads.status(job_id)
        chunks = reads.chunks(job_id, 0)
        attempts = reads.timeline(job_id)
        lines = reads.logs(job_id, 0)
    now, key_of = gq.now(), keys_of(gq.alias)
    explanation = gq.explain(job_id)
    latest = max((lease for _, lease, _ in chunks), default=0)
    output = "".join(text for _, lease, text in chunks if lease == latest)
    shown_lines = lines if whole else lines[-SHOWN_LINES:]
    return {
        "job": job,
        "key": key_of(job.id),
        "queue_key": key_of(job.queue),
        "fields": _fields(job, now),
        "progress": progress(job),
        "progress_percent": str(round((job.progress or 0) * 100, 1)),  # as a string, which no locale changes
        "may_be_retried": job.state in RETRIED,
        "may_be_cancelled": job.state not in FINISHED and not (job.state is State.RUNNING and job.cancel_requested),
        "summary": Text.of(explanation.summary).shown,
        "reasons": [(hold.reason, held(hold, now=now)) for hold in explanation.reasons],
        "expected": explanation.expected.worded(now=now) if explanation.expected else "",
        "advice": next_step(gq, explanation),
        "timeline": [(Moment(at, now), Text.of(what).shown, at > now) for at, what in timeline_of(job, attempts, now=now)],
        "attempts": [_attempt(attempt, now) for attempt in attempts],
        "arguments": as_json(dict(job.arguments), whole=whole),
        "result": None if ending.result is None else as_json(json.loads(ending.result), whole=whole),
        "output": Text.of(output, whole=whole) if output else None,
        "error": None if job.error is None else {"code": job.error.code, **_error(job.error)},
        "log": [(Moment(line.at, now), line.lease, Text.of(line.message).shown) for line in shown_lines],
        "log_left_out_count": len(lines) - len(shown_lines),
    }


def _error(error: Any) -> dict[str, str]:
    return {"message": Text.of(error.message).shown, "traceback": Text.of(error.traceback).shown}


def _attempt(attempt: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    began, ended = attempt["started_at"], attempt["finished_at"]
    return {
        **attempt,
        "started_at": Moment(began, now) if began else None,
        "took": format_duration((ended - began).total_seconds()) if began else NOTHING,
        "error": None if attempt["error"] is None else _error(attempt["error"]),
    }


def _fields(job: Job, now: datetime) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Show every field of the row except those shown elsewhere; [(heading, [(name, value)])]."""

    def size(amount: int | None) -> str | None:
        return format_size(amount) if amount else None

    def moment(at: datetime | None) -> Moment | None:
        return None if at is None else Moment(at, now)

    groups: dict[str, dict[str, Any]] = {
        "Job": {
            "state": job.state,
            "priority": job.priority,
            "attempts": f"{job.attempt} of {job.max_attempts}",
            "crashes": job.crashes,
            "progress": progress(job),
            "worker": job.worker_id,
            "tags": ", ".join(job.tags),
            "cancel requested": "yes" if job.cancel_requested else "no",
            "waiting for": job.waiting_for,
            "lease": job.lease,
        },
        "Times": {
            "enqueued": moment(job.enqueued_at),
            "due": moment(job.scheduled_at),
            "started": moment(job.started_at),
            "finished": moment(job.finished_at),
            "expires": moment(job.expires_at),
            "timeout": format_duration(job.timeout_s) if job.timeout_s else None,
        },
        "GPU": {
            "model": job.expected_model,
            "needs": size(job.demand_bytes),
            "device": job.device,
            "reserved": size(job.reserved_bytes),
            "requested": ", ".join(filter(None, [size(job.wanted_bytes), job.wanted_device and f"on {job.wanted_device}"])),
            "fallback": ", ".join(job.fallback),
            "preempted": f"{job.preemptions}×" if job.preemptions else None,
            "output tokens": job.output_tokens or None,
        },
    }
    return [
        (heading, [(name, NOTHING if value is None or value == "" else value) for name, value in shown.items()])
        for heading, shown in groups.items()
    ]
