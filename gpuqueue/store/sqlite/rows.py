"""Converts between rows and domain objects, and decides where JSON is stored.

JSON larger than INLINE_BYTES is in `payloads`, because every update of a job rewrites its row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.errors import describe
from gpuqueue.domain.job import Job, JobErrorRecord, State
from gpuqueue.domain.json_text import NO_ARGUMENTS
from gpuqueue.domain.safe_text import safe_repr
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
    "wanted_bytes, wanted_device, fallback, preemptions, output_tokens, passed_at"
)


def to_job(connection: Statements, row: tuple[Any, ...], known: Job | None = None) -> Job:
    """Build a Job from a row of JOB_COLUMNS, fetching arguments that are in `payloads`.

    Inside a write transaction, `known` is the job as it was read before: its arguments are not decoded again.
    """
    (
        id_, queue, task, state, priority, attempt, max_attempts, lease, crashes, enqueued_at, scheduled_at, started_at,
        finished_at, expires_at, timeout_s, worker_id, model, demand_bytes, device, reserved_bytes, waiting_for,
        cancel_requested, arguments, tags, error, progress, progress_note,
        wanted_bytes, wanted_device, fallback, preemptions, output_tokens, passed_at,
    ) = row  # fmt: skip
    if known is None:
        decoded, arguments_error = decode_arguments(get_payload(connection, id_, "arguments") if arguments is None else arguments)
    else:
        decoded, arguments_error = known.arguments, known.arguments_error
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
        arguments=decoded,
        tags=tuple(json.loads(tags)) if tags else (),
        error=to_error(error),
        progress=progress,
        progress_note=progress_note or "",
        wanted_bytes=wanted_bytes,
        wanted_device=wanted_device,
        fallback=tuple(json.loads(fallback)) if fallback else (),
        preemptions=preemptions,
        output_tokens=output_tokens,
        passed_at=None if passed_at is None else from_us(passed_at),
        arguments_error=arguments_error,
    )


def decode_arguments(text: str | None) -> tuple[Mapping[str, Any], str]:
    """Decode a job's arguments, None if they are missing.

    Returns: none and why not if that fails, as it does for text written by other programs.
    """
    if text == NO_ARGUMENTS:
        return {}, ""
    if text is None:
        return {}, "the job's arguments are missing from the file"
    try:
        arguments = json.loads(text)
    except Exception as error:  # RecursionError too: how deep the decoder can go depends on the calling thread's stack
        return {}, f"the job's arguments cannot be decoded: {describe(error)}"
    if not isinstance(arguments, dict):
        return {}, f"the job's arguments are not a JSON object, but {safe_repr(arguments)}"
    return arguments, ""


def to_error(text: str | None) -> JobErrorRecord | None:
    return None if text is None else JobErrorRecord(**json.loads(text))


def from_error(error: JobErrorRecord) -> str:
    return json.dumps(asdict(error))
