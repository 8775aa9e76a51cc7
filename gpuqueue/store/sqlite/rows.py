"""Converts between rows and domain objects, and decides where JSON is stored.

JSON larger than INLINE_BYTES is in `payloads`, because every update of a job rewrites its row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.job import Job, JobErrorRecord, State
from gpuqueue.domain.json_text import NO_ARGUMENTS
from gpuqueue.domain.units import from_us

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

INLINE_BYTES = 1000
PUT_PAYLOAD = "INSERT OR REPLACE INTO payloads (job_id, kind, content) VALUES (?, ?, ?)"


def put_payload(connection: Statements, job_id: int, kind: str, text: str) -> None:
    connection.execute(PUT_PAYLOAD, (job_id, kind, text))


def get_payload(connection: Statements, job_id: int, kind: str) -> str | None:
    row = connection.execute("SELECT content FROM payloads WHERE job_id = ? AND kind = ?", (job_id, kind)).fetchone()
    return None if row is None else row[0]


JOB_COLUMNS = (
    "id, queue, task, state, priority, attempt, max_attempts, lease, crashes, enqueued_at, scheduled_at, started_at, "
    "finished_at, expires_at, timeout_s, worker_id, demand_model, demand_bytes, device, reserved_bytes, waiting_for, "
    "cancel_requested, arguments, tags, error, progress, progress_note, "
    "wanted_bytes, wanted_device, fallback, preemptions, output_tokens"
)


def to_job(connection: Statements, row: tuple[Any, ...]) -> Job:
    """Build a Job from a row of JOB_COLUMNS, fetching arguments that are in `payloads`."""
    (
        id_, queue, task, state, priority, attempt, max_attempts, lease, crashes, enqueued_at, scheduled_at, started_at,
        finished_at, expires_at, timeout_s, worker_id, model, demand_bytes, device, reserved_bytes, waiting_for,
        cancel_requested, arguments, tags, error, progress, progress_note,
        wanted_bytes, wanted_device, fallback, preemptions, output_tokens,
    ) = row  # fmt: skip
    return Job(
        id=id_,
        queue=queue,
        task=task,
        state=State(state),
        priority=priority,
        attempt=attempt,
        max_attempts=max_attempts,
        lease=lease,
        crashes=crashes,
        enqueued_at=from_us(enqueued_at),
        scheduled_at=from_us(scheduled_at),
        started_at=None if started_at is None else from_us(started_at),
        finished_at=None if finished_at is None else from_us(finished_at),
        expires_at=None if expires_at is None else from_us(expires_at),
        timeout_s=timeout_s,
        worker_id=worker_id,
        model=model,
        demand_bytes=demand_bytes,
        device=device,
        reserved_bytes=reserved_bytes,
        waiting_for=waiting_for,
        cancel_requested=bool(cancel_requested),
        arguments=load_arguments(connection, id_, arguments),
        tags=tuple(json.loads(tags)) if tags else (),
        error=to_error(error),
        progress=progress,
        progress_note=progress_note or "",
        wanted_bytes=wanted_bytes,
        wanted_device=wanted_device,
        fallback=tuple(json.loads(fallback)) if fallback else (),
        preemptions=preemptions,
        output_tokens=output_tokens,
    )


def load_arguments(connection: Statements, job_id: int, inline: str | None) -> Mapping[str, Any]:
    if inline == NO_ARGUMENTS:
        return {}
    text = inline if inline is not None else get_payload(connection, job_id, "arguments")
    arguments: dict[str, Any] = json.loads(text or NO_ARGUMENTS)
    return arguments


def to_error(text: str | None) -> JobErrorRecord | None:
    return None if text is None else JobErrorRecord(**json.loads(text))


def from_error(error: JobErrorRecord) -> str:
    return json.dumps({"code": error.code, "message": error.message[:4000], "traceback": error.traceback[-8000:]})
