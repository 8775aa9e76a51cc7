"""Maps the queue's rows to BullMQ's layout: pure functions that return every key of a queue and of a job.

The layout was read from npm bullmq 5.81 and 6.7 and checked against their clients, PyPI bullmq 3.4 and bull-board 9.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gpuqueue import Entry, Event, Job, Record, State

MAX_EVENTS = 10_000
VERSION = "gpuqueue:1"
LARGEST_PRIORITY = 2**21 - 1
MINUTES = 24 * 60  # of metrics
DELAYED = (State.SCHEDULED, State.RETRYABLE)
FAILED = (State.DISCARDED, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Key:
    """The type and value of one key; an empty value means that the key does not exist."""

    kind: str  # hash, list or zset
    value: Any

    def __bool__(self) -> bool:
        return bool(self.value)


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970-01-01 UTC, exactly."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def dumps(value: Any) -> str:
    """Return JSON that every reader can parse: one bad value makes a client throw for a whole page."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_without_nan(value), allow_nan=False, separators=(",", ":"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def plain(text: str) -> str:
    """Return the text with replacements for what UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


# --- a job ---


def job_keys(record: Record) -> dict[str, Key]:
    """Return the keys of a job: {"ID": its hash, "ID:logs": its log lines}."""
    job = record.job
    fields = {
        "name": plain(job.task),
        "data": dumps(dict(job.arguments)),
        "opts": dumps(_options(job)),
        "timestamp": str(milliseconds(job.enqueued_at)),
        "delay": str(_delay_ms(job)),
        "priority": str(_priority(job)),
        "ats": str(job.lease),
        "atm": str(job.attempt - (job.state is State.RUNNING)),
        "stc": str(job.crashes),
        "progress": "0" if job.progress is None else progress(job.progress, job.progress_note),
    }
    if job.started_at is not None and job.state not in (State.AVAILABLE, State.SCHEDULED):
        fields["processedOn"] = str(milliseconds(job.started_at))
        if job.worker_id:
            fields["pb"] = plain(job.worker_id)
    if job.finished_at is not None:
        fields["finishedOn"] = str(milliseconds(job.finished_at))
    if job.state is State.COMPLETED:
        fields["returnvalue"] = result_of(record)
    elif job.error is not None:
        fields["failedReason"] = plain(job.error.message)
        fields["stacktrace"] = dumps([job.error.traceback] if job.error.traceback else [])
    elif job.state in FAILED:
        fields["failedReason"] = str(job.state)
        fields["stacktrace"] = "[]"
    logs = [plain(line.message) for line in record.logs]
    return {str(job.id): Key("hash", fields), f"{job.id}:logs": Key("list", logs)}


def _options(job: Job) -> dict[str, Any]:
    options: dict[str, Any] = {"attempts": job.max_attempts, "timestamp": milliseconds(job.enqueued_at)}
    if _delay_ms(job):
        options["delay"] = _delay_ms(job)
    if _priority(job):
        options["priority"] = _priority(job)
    return options


def _delay_ms(job: Job) -> int:
    return max(0, milliseconds(job.scheduled_at) - milliseconds(job.enqueued_at)) if job.state in DELAYED else 0


def _priority(job: Job | Entry) -> int:
    """Convert a priority: in gpuqueue the highest runs first, and 0 is usual; in BullMQ the lowest does, and 0 before all."""
    return min(-job.priority, LARGEST_PRIORITY) if job.priority < 0 else 0


def progress(part: float, note: str) -> str:
    """Return a job's progress as JSON: a percentage, or with a note {"percent", "note"}."""
    percent = round(part * 100, 2)
    number: float = int(percent) if percent == int(percent) else percent
    return dumps({"percent": number, "note": note} if note else number)


def result_of(record: Record | None) -> str:
    """Return a result as JSON, "null" if there is none: a client crashes on a completed job without a result."""
    if record is None or record.result is None:
        return "null"
    may_have_nan = "NaN" in record.result or "Infinity" in record.result
    return dumps(json.loads(record.result)) if may_have_nan else record.result


# --- a queue ---


@dataclass(frozen=True, slots=True)
class QueueRows:
    """The rows behind a queue's keys, jobs in the queue's order. `counts` includes jobs that are not shown."""

    waiting: Sequence[Entry]
    running: Sequence[Entry]
    delayed: Sequence[Entry]
    completed: Sequence[Entry]
    failed: Sequence[Entry]
    is_held: bool
    concurrency: int | None
    counts: Mapping[str, int]
    completed_by_minute: Mapping[datetime, int]
    failed_by_minute: Mapping[datetime, int]

    @property
    def ids(self) -> set[int]:
        """The jobs that are shown."""
        every = (self.waiting, self.running, self.delayed, self.completed, self.failed)
        return {entry.id for entries in every for entry in entries}


def queue_keys(rows: QueueRows) -> dict[str, Key]:
    """Return the keys of a queue, except its events: {suffix: key}."""
    meta = {"opts.maxLenEvents": str(MAX_EVENTS), "version": VERSION}
    if rows.is_held:
        meta["paused"] = "1"  # readers only check whether the field exists
    if rows.concurrency is not None:
        meta["concurrency"] = str(rows.concurrency)
    first = [entry for entry in rows.waiting if entry.priority >= 0]
    later = [entry for entry in rows.waiting if entry.priority < 0]
    counts = rows.counts
    failed_count = sum(counts.get(state, 0) for state in FAILED)
    return {
        "meta": Key("hash", meta),
        "wait": Key("list", [str(entry.id) for entry in reversed(first)]),  # the tail runs next
        "active": Key("list", [str(entry.id) for entry in reversed(rows.running)]),
        "prioritized": Key("zset", _prioritized(later)),
        "delayed": Key("zset", _delayed(rows.delayed)),
        "completed": Key("zset", _finished(rows.completed)),
        "failed": Key("zset", _finished(rows.failed)),
        **_metrics("metrics:completed", counts.get(State.COMPLETED, 0), rows.completed_by_minute),
        **_metrics("metrics:failed", failed_count, rows.failed_by_minute),
    }


def _prioritized(entries: Iterable[Entry]) -> dict[str, float]:
    return {str(entry.id): float(_priority(entry) * 2**32 + number) for number, entry in enumerate(entries)}


def _delayed(entries: Iterable[Entry]) -> dict[str, float]:
    found: dict[str, float] = {}
    last_ms, rank = -1, 0
    for entry in entries:
        due_ms = milliseconds(entry.scheduled_at)
        rank = rank + 1 if due_ms == last_ms else 0
        last_ms = due_ms
        found[str(entry.id)] = float(due_ms * 4096 + min(rank, 4095))
    return found


def _finished(entries: Iterable[Entry]) -> dict[str, float]:
    return {str(entry.id): float(milliseconds(entry.finished_at)) for entry in entries if entry.finished_at is not None}


def _metrics(name: str, count: int, by_minute: Mapping[datetime, int]) -> dict[str, Key]:
    """Return how many jobs finished, and how many in each minute before the last minute that has any."""
    if not by_minute:
        return {name: Key("hash", {}), f"{name}:data": Key("list", [])}
    newest, oldest = max(by_minute), min(by_minute)
    minutes = (newest - oldest) // timedelta(minutes=1)
    data = [str(by_minute.get(newest - timedelta(minutes=number + 1), 0)) for number in range(minutes)]
    fields = {"count": str(count), "prevTS": str(milliseconds(newest)), "prevCount": str(max(0, count - by_minute[newest]))}
    return {name: Key("hash", fields), f"{name}:data": Key("list", data)}


# --- events ---

ROOM = 4  # the most entries for one event of the queue


def entries(event: Event, record: Record | None) -> list[dict[str, str]]:
    """Return the stream entries for an event of the queue."""
    data, job_id = event.data, {"jobId": str(event.job_id)}
    state, before = data.get("state"), data.get("before")
    due = {"delay": str(milliseconds(record.job.scheduled_at))} if record is not None else {"delay": "0"}
    match event.name:
        case "job_enqueued":
            told = [{"event": "added", **job_id, "name": plain(str(data.get("task", "")))}]
            return told + ([{"event": "waiting", **job_id}] if state == "available" else [{"event": "delayed", **job_id, **due}])
        case "job_promoted":
            return [{"event": "waiting", **job_id, "prev": "delayed" if before in ("scheduled", "retryable") else "failed"}]
        case "attempt_started":
            return [{"event": "active", **job_id, "prev": "waiting"}]
        case "attempt_finished":
            if state == "available":
                return [{"event": "waiting", **job_id, "prev": "active"}]
            return [{"event": "delayed", **job_id, **due}]
        case "job_progressed":
            return [{"event": "progress", **job_id, "data": progress(data.get("progress") or 0.0, data.get("note") or "")}]
        case "job_finished":
            prev = "active" if before == "running" else "waiting"
            if state == "completed":
                return [{"event": "completed", **job_id, "returnvalue": result_of(record), "prev": prev}]
            error = None if record is None else record.job.error
            reason = plain(error.message) if error is not None else str(state)
            told = [{"event": "failed", **job_id, "failedReason": reason, "prev": prev}]
            if state == "discarded":
                told.append({"event": "retries-exhausted", **job_id, "attemptsMade": str(data.get("attempt", 0))})
            return told
        case "job_removed":
            return [{"event": "removed", **job_id, "prev": "completed" if state == "completed" else "failed"}]
        case "lease_rescued":
            return [{"event": "stalled", **job_id}]
    return []
