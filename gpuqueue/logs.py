"""Owns how gpuqueue's log is written: the events there are, as lines of text or as one JSON object a line; says none itself.

    from gpuqueue.logs import configure_logging
    configure_logging("json", level="info")

An event's record has the attribute `gpuqueue`: {"event": "job_completed", "job": 7, "lease": 1, …}, for formatters of one's
own. Everything goes through the standard library's `logging`, to loggers below `gpuqueue`.
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

ATTRIBUTE = "gpuqueue"  # of a record: what the event says, as a mapping
TEXT = "%(asctime)s %(levelname)s %(message)s"
KEYS = ("at", "level", "logger", "event", "worker", "job", "lease", "queue", "task", "message", "traceback")


class EventKind(NamedTuple):
    """When an event is told, and its own fields beside those of every line."""

    when: str
    fields: tuple[str, ...] = ()


EVENTS: Mapping[str, EventKind] = {
    "worker_started": EventKind("a worker begins", ("queues", "database")),
    "worker_stopping": EventKind("a signal asks `gpuqueue worker` to stop, or to hurry", ("at_once",)),
    "worker_stopped": EventKind("a worker has ended in good order"),
    "worker_lost": EventKind("a worker could not extend its lease, and stops what it runs"),
    "worker_rescued": EventKind("a worker took over what a dead one left", ("dead_worker", "proof", "jobs")),
    "attempt_started": EventKind(
        "an attempt begins; of jobs without a device at level debug",
        ("attempt", "max_attempts", "device", "model", "reserved_bytes"),
    ),
    "attempt_late": EventKind("an attempt ended after its lease was lost; nothing was changed", ("attempt",)),
    "attempt_abandoned": EventKind("an attempt does not stop and is given up, while it goes on", ("attempt", "why")),
    "attempt_broken": EventKind("the worker could not carry an attempt through; its job is rescued", ("attempt", "error")),
    "job_completed": EventKind("a job completed; those without a device at level debug", ("attempt", "run_s")),
    "job_retried": EventKind("an attempt failed, and the job is tried again", ("attempt", "run_s", "code", "error", "due_at")),
    "job_snoozed": EventKind(
        "a job is postponed, its attempt unspent", ("attempt", "run_s", "code", "error", "due_at", "waiting_for")
    ),
    "job_preempted": EventKind("a job made room and goes back, its attempt unspent", ("attempt", "run_s")),
    "job_released": EventKind("a worker that stops gave a job back, its attempt unspent", ("attempt", "run_s")),
    "job_cancelled": EventKind("a running job was cancelled", ("attempt", "run_s", "code", "error")),
    "job_discarded": EventKind("a job failed for good", ("attempt", "run_s", "code", "error")),
    "job_rescued": EventKind("a dead worker's running job was taken back", ("state", "crashes", "dead_worker")),
    "jobs_refused": EventKind("waiting jobs were refused, because their backend is away", ("count",)),
    "preemption_requested": EventKind("an attempt is asked to make room", ("for_job",)),
    "queue_held": EventKind("a queue may not start jobs, or for other reasons than before", ("reasons", "details")),
    "queue_released": EventKind("a queue may start jobs again"),
    "backend_lost": EventKind("a backend went away", ("backend", "error", "retry_at")),
    "backend_recovered": EventKind("a backend came back", ("backend",)),
    "device_lost": EventKind("a device can no longer be read", ("device", "error")),
    "device_recovered": EventKind("a lost device can be read again", ("device",)),
    "model_loaded": EventKind("an answer's figures say that its model was loaded for it", ("model", "device", "load_s")),
    "model_evicted": EventKind("models were unloaded to make room for a job", ("models", "device", "evict_s")),
    "memory_released": EventKind("a job's clean-up is verified", ("device", "model", "clean_up_s", "detail")),
    "memory_kept": EventKind("a clean-up is not verified, and the memory stays reserved", ("device", "model", "detail")),
}


def tell(logger: logging.Logger, level: int, event: str, message: str, /, **fields: Any) -> None:
    """Log an event in words, with what it says as data; a field that is None is not known."""
    if logger.isEnabledFor(level):
        logger.log(level, message, extra={ATTRIBUTE: {"event": event, **fields}})


class JSONFormatter(logging.Formatter):
    """One JSON object a line, whoever logs it: KEYS, null where something is not known, then the event's own fields.

    A line that is logged inside a task has its job, lease, queue and task, also when another logger says it. `worker` names
    the worker for lines that do not say which.
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
    """Write gpuqueue's log to `stream` (stderr), from `level` on, and what other loggers say from their own levels on.

    Where the application has given the root logger handlers of its own, those go on to write its lines, and only gpuqueue's
    come here. Returns a function that restores what was there. Raises: UsageError.
    """
    if format not in get_args(LogFormat):
        raise UsageError(f"log format {format!r}{did_you_mean(str(format), get_args(LogFormat))}: it is text or json")
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
