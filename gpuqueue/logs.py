"""Formats gpuqueue's log: lists all events, and writes them as text lines or as one JSON object per line.

    from gpuqueue.logs import configure_logging
    configure_logging("json", level="info")

An event's record has the attribute `gpuqueue`: {"event": "job_completed", "job": 7, "lease": 1, …}, for your own formatters.
Everything goes through the standard library's `logging`, to loggers below `gpuqueue`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TextIO, get_args

from gpuqueue.contract.current_job import current_lease
from gpuqueue.domain.errors import UsageError, did_you_mean
from gpuqueue.domain.moments import iso
from gpuqueue.domain.settings import LogFormat

__all__ = ["EVENTS", "KEYS", "JSONFormatter", "LogFormat", "configure_logging"]

ATTRIBUTE = "gpuqueue"  # of a record: the event's data, as a mapping
TEXT = "%(asctime)s %(levelname)s %(message)s"
KEYS = ("at", "level", "logger", "event", "worker", "job", "lease", "queue", "task", "message", "traceback")


class EventKind(NamedTuple):
    """When an event is logged, and its own fields in addition to those of every line."""

    when: str
    fields: tuple[str, ...] = ()


EVENTS: Mapping[str, EventKind] = {
    "worker_started": EventKind("a worker started", ("queues", "database")),
    "worker_stopping": EventKind("a signal asked `gpuqueue worker` to stop, or to stop at once", ("at_once",)),
    "worker_stopped": EventKind("a worker stopped cleanly"),
    "worker_lost": EventKind("a worker could not extend its lease, and stops its jobs"),
    "worker_rescued": EventKind("a worker rescued a dead one's jobs", ("dead_worker", "proof", "jobs")),
    "attempt_started": EventKind(
        "an attempt started; for jobs without a device at level debug",
        ("attempt", "max_attempts", "device", "model", "reserved_bytes"),
    ),
    "attempt_late": EventKind("an attempt ended after its lease was lost; nothing was changed", ("attempt",)),
    "attempt_abandoned": EventKind("an attempt did not stop; it is given up but keeps running", ("attempt", "why")),
    "attempt_broken": EventKind("the worker could not carry out an attempt; its job is rescued", ("attempt", "error")),
    "job_completed": EventKind("a job completed; those without a device at level debug", ("attempt", "run_s")),
    "job_retried": EventKind("an attempt failed, and the job will be retried", ("attempt", "run_s", "code", "error", "due_at")),
    "job_snoozed": EventKind(
        "a job was postponed, without spending an attempt", ("attempt", "run_s", "code", "error", "due_at", "waiting_for")
    ),
    "job_preempted": EventKind(
        "a job was preempted and returned to its queue, without spending an attempt", ("attempt", "run_s")
    ),
    "job_released": EventKind("a stopping worker returned a job to its queue, without spending an attempt", ("attempt", "run_s")),
    "job_cancelled": EventKind("a running job was cancelled", ("attempt", "run_s", "code", "error")),
    "job_discarded": EventKind("a job failed permanently", ("attempt", "run_s", "code", "error")),
    "job_rescued": EventKind("a dead worker's running job was rescued", ("state", "crashes", "dead_worker")),
    "jobs_refused": EventKind("waiting jobs were refused because their backend is unavailable", ("count",)),
    "preemption_requested": EventKind("an attempt was asked to stop, for another job or a pause", ("for_job",)),
    "queue_held": EventKind("a queue is held, or held for different reasons than before", ("reasons", "details")),
    "queue_unserved": EventKind("a caller waits for a job of a queue that no worker serves"),
    "queue_released": EventKind("a queue is no longer held"),
    "backend_lost": EventKind("a backend became unavailable", ("backend", "error", "retry_at")),
    "backend_recovered": EventKind("a backend is available again", ("backend",)),
    "device_lost": EventKind("a device can no longer be read", ("device", "error")),
    "device_recovered": EventKind("a lost device can be read again", ("device",)),
    "model_loaded": EventKind("a model was loaded for a job, by the figures of its answer", ("model", "device", "load_s")),
    "model_evicted": EventKind("models were unloaded to free memory for a job", ("models", "device", "evict_s")),
    "memory_released": EventKind("a job's memory was verified to be released", ("device", "model", "clean_up_s", "detail")),
    "memory_kept": EventKind("a clean-up could not be verified, and the memory stays reserved", ("device", "model", "detail")),
}


def tell(logger: logging.Logger, level: int, event: str, message: str, /, **fields: Any) -> None:
    """Log an event as text, with its data as fields; None is unknown."""
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={ATTRIBUTE: {"event": event, **fields}})


class JSONFormatter(logging.Formatter):
    """One JSON object per line, from any logger: KEYS, null where unknown, then the event's own fields.

    A line logged inside a task has its job, lease, queue and task, whichever logger it comes from. `worker` returns the
    worker for lines that do not name one.
    """

    def __init__(self, *, worker: Callable[[], str] | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        said = getattr(record, ATTRIBUTE, None)
        fields = dict(said) if isinstance(said, Mapping) else {}
        line: dict[str, Any] = {
            "at": iso(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": None,
            "worker": self._worker() or None if self._worker else None,
            **_of_task(),
            "message": record.getMessage(),
            "traceback": self._traceback(record),
        }
        line.update((key, value) for key, value in fields.items() if value is not None or key not in line)
        return json.dumps(line, default=_plain)

    def _traceback(self, record: logging.LogRecord) -> str | None:
        found = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else record.exc_text
        stack = self.formatStack(record.stack_info) if record.stack_info else None
        return "\n".join(filter(None, (found, stack))) or None


def configure_logging(
    format: LogFormat = "text",
    *,
    level: str | int = "info",
    stream: TextIO | None = None,
    worker: Callable[[], str] | None = None,
) -> Callable[[], None]:
    """Write gpuqueue's log to `stream` (stderr), from `level` up, and other loggers' lines from their own levels up.

    If the application has handlers on the root logger, they keep writing its lines, and only gpuqueue's lines are written
    here. Returns a function that restores the previous state. Raises: UsageError.
    """
    if format not in get_args(LogFormat):
        raise UsageError(f"log format must be text or json, not {format!r}{did_you_mean(str(format), get_args(LogFormat))}")
    own, root = logging.getLogger("gpuqueue"), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter(worker=worker) if format == "json" else logging.Formatter(TEXT))
    before_level, before_propagate = own.level, own.propagate
    into = own if root.handlers else root
    into.addHandler(handler)
    own.propagate = into is root
    own.setLevel(level.upper() if isinstance(level, str) else level)

    def restore() -> None:
        into.removeHandler(handler)
        own.setLevel(before_level)
        own.propagate = before_propagate

    return restore


def _of_task() -> dict[str, Any]:
    lease = current_lease()
    if lease is None:
        return {"job": None, "lease": None, "queue": None, "task": None}
    return {"job": lease.job_id, "lease": lease.lease, "queue": lease.queue, "task": lease.task}


def _plain(value: Any) -> str:
    return iso(value) if isinstance(value, datetime) and value.tzinfo else str(value)
