"""Converts a job to Django's TaskResult; changes no job."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.utils import timezone
from django.utils.module_loading import import_string

from gpuqueue.contract.reads import Reads
from gpuqueue.domain import errors
from gpuqueue.domain.job import Job, JobErrorRecord, State
from gpuqueue.domain.units import to_us
from gpuqueue.integrations.django.tasks_api import Task, TaskError, TaskResult, TaskResultStatus

STATUS = {
    State.RUNNING: "RUNNING",
    State.COMPLETED: "SUCCESSFUL",
    State.CANCELLED: "FAILED",
    State.DISCARDED: "FAILED",
}
SPENT = ("retried", "discarded", "cancelled", "crashed")  # outcomes that count as an attempt
CLASSES = {
    **{kind.code: kind for kind in errors.ExecutionError.__subclasses__()},
    "cancelled": errors.JobCancelled,
    "expired": errors.JobExpired,
    "result": errors.PayloadError,
}


def result_id(job_id: int, enqueued_at: datetime) -> str:
    """Return the id of a job's result. The time keeps an id of a rolled-back transaction from naming another job later."""
    return f"{job_id}-{to_us(enqueued_at):x}"


def read_result_id(text: str) -> tuple[int, int] | None:
    """Return the job's id and when it was enqueued, in microseconds; None if the string is not a result id."""
    found = re.fullmatch(r"([0-9]{1,18})-([0-9a-f]{1,16})", str(text))
    return None if found is None else (int(found[1]), int(found[2], 16))


def import_task(path: str) -> Any:
    """Import a Django task by its path. Raises: ImportError; SuspiciousOperation if it is not a task."""
    found = import_string(path)
    if not isinstance(found, Task):
        raise SuspiciousOperation(f"{path} is not a task, but a {type(found).__name__}")
    return found


def new_result(job_id: int, enqueued_at: datetime, task: Any, args: Any, kwargs: Any, alias: str) -> Any:
    """Make the result of a job that was just stored."""
    return TaskResult(
        task=task,
        id=result_id(job_id, enqueued_at),
        status=TaskResultStatus.READY,
        enqueued_at=moment(enqueued_at),
        started_at=None,
        finished_at=None,
        last_attempted_at=None,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=[],
        worker_ids=[],
    )


def result_of(reads: Reads, job: Job, alias: str) -> Any:
    """Make a job's result from its rows. Raises: ImportError, SuspiciousOperation if its task no longer exists."""
    task = import_task(job.task)
    args, kwargs = job.arguments.get("args", []), job.arguments.get("kwargs", {})
    result = new_result(job.id, job.enqueued_at, _as_enqueued(task, job), args, kwargs, alias)
    status = STATUS.get(job.state, "READY")
    attempts = [attempt for attempt in reads.timeline(job.id) if attempt["outcome"] in SPENT]
    workers = [attempt["worker"] or "" for attempt in attempts]
    failures = [error_of(attempt["error"]) for attempt in attempts if attempt["error"] is not None]
    if status in ("RUNNING", "SUCCESSFUL"):
        workers.append(job.worker_id or "")
    elif status == "FAILED" and not (attempts and attempts[-1]["finished_at"] == job.finished_at):
        # It ended while waiting.
        failures.append(error_of(job.error or JobErrorRecord("cancelled", "cancelled while waiting")))
    begins = [attempt["started_at"] for attempt in attempts if attempt["started_at"] is not None]
    if job.started_at is not None:
        begins.append(job.started_at)
    changes: dict[str, Any] = {
        "status": TaskResultStatus[status],
        "started_at": moment(min(begins, default=None)),
        "last_attempted_at": moment(max(begins, default=None)),
        "finished_at": moment(job.finished_at),
        "errors": failures,
        "worker_ids": workers,
    }
    if status == "SUCCESSFUL":
        changes["_return_value"] = json.loads(reads.status(job.id).result or "null")
    change(result, changes)
    return result


def change(result: Any, changes: dict[str, Any]) -> None:
    """Change a result, which is frozen to its readers."""
    for name, value in changes.items():
        object.__setattr__(result, name, value)


def error_of(record: JobErrorRecord) -> Any:
    """Convert the error of a failed attempt or of an ended job."""
    return TaskError(exception_class_path=_class_path(record), traceback=record.traceback or f"{record.message}\n")


def _class_path(record: JobErrorRecord) -> str:
    """Find the class of an error in the last line of its traceback, which names it as Python does: builtins by name alone."""
    name = re.escape(record.message.partition(":")[0])
    for line in reversed(record.traceback.splitlines()):
        if found := re.match(rf"((?:[\w.]+\.)?{name})(?::|$)", line):
            return found[1] if "." in found[1] else f"builtins.{found[1]}"
    kind = CLASSES.get(record.code, errors.JobFailed)
    return f"{kind.__module__}.{kind.__qualname__}"


def _as_enqueued(declared: Any, job: Job) -> Any:
    """Return the task as it was enqueued. It is not validated again: TASKS may have changed since."""
    run_after = job.arguments.get("run_after")
    changed: dict[str, Any] = {
        "priority": job.priority,
        "queue_name": job.queue,
        "run_after": None if run_after is None else datetime.fromisoformat(run_after),
    }
    made = object.__new__(type(declared))
    change(made, {field.name: changed.get(field.name, getattr(declared, field.name)) for field in fields(declared)})
    return made


def moment(at: datetime | None) -> datetime | None:
    """Return a datetime as Django's settings want it: aware, or naive in the default time zone."""
    return at if at is None or settings.USE_TZ else timezone.make_naive(at)
