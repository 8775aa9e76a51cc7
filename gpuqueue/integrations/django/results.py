"""Owns how a job is told as Django's TaskResult; changes no job."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.utils import timezone
from django.utils.module_loading import import_string

from gpuqueue.domain import Job, State
from gpuqueue.integrations.django.tasks_api import Task, TaskResult, TaskResultStatus
from gpuqueue.units import to_us

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

STATUS = {
    State.RUNNING: "RUNNING",
    State.COMPLETED: "SUCCESSFUL",
    State.CANCELLED: "FAILED",
    State.DISCARDED: "FAILED",
}


def result_id(job_id: int, enqueued_at: datetime) -> str:
    """Name a job's result. The moment keeps an id of a transaction that was rolled back from naming another job later."""
    return f"{job_id}-{to_us(enqueued_at):x}"


def read_result_id(text: str) -> tuple[int, int] | None:
    """Return the job's id and when it was enqueued, in microseconds; None for what is no result's id."""
    job, _, moment = str(text).partition("-")
    try:
        return int(job), int(moment, 16)
    except ValueError:
        return None


def import_task(path: str) -> Any:
    """Import a Django task by its path. Raises: ImportError; SuspiciousOperation for what is no task."""
    found = import_string(path)
    if not isinstance(found, Task):
        raise SuspiciousOperation(f"{path} is not a task, but a {type(found).__name__}")
    return found


def new_result(job_id: int, enqueued_at: datetime, task: Any, args: Any, kwargs: Any, alias: str) -> Any:
    """Tell a job that was just stored."""
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


def result_of(gq: DjangoQueue, job: Job) -> Any:
    """Tell a job as its rows say it."""
    declared = import_task(job.task)
    arguments = job.arguments
    result = new_result(
        job.id, job.enqueued_at, _task(declared, job), arguments.get("args", []), arguments.get("kwargs", {}), gq.alias
    )
    object.__setattr__(result, "status", TaskResultStatus[STATUS.get(job.state, "READY")])
    return result


def _task(declared: Any, job: Job) -> Any:
    """Return the task as it was enqueued. It is not validated again: TASKS may have changed since."""
    run_after = job.arguments.get("run_after")
    changed = {
        "priority": job.priority,
        "queue_name": job.queue,
        "run_after": None if run_after is None else datetime.fromisoformat(run_after),
    }
    made = object.__new__(type(declared))
    for field in fields(declared):
        object.__setattr__(made, field.name, changed.get(field.name, getattr(declared, field.name)))
    return made


def moment(at: datetime | None) -> datetime | None:
    """Return a moment the way Django's settings have moments: aware, or naive in the default zone."""
    return at if at is None or settings.USE_TZ else timezone.make_naive(at)
