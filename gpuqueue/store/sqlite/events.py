"""Writes the append-only events, and manages followers and the triggers that write every event for them.

Without a follower, only events that no row records are written (rescues, holds, losses). With one, triggers on `jobs` write
every transition in the transaction that makes it, so none can be missed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.job import Event
from gpuqueue.domain.units import from_us

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

_NOW_US = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
# An attempt waits from the time it could have started: it was due, and the previous attempt had ended.
_WAITED_S = (
    "CASE WHEN NEW.state = 'running' THEN max(0, NEW.started_at - max(NEW.enqueued_at, NEW.scheduled_at, "
    "coalesce((SELECT max(finished_at) FROM attempts WHERE job_id = NEW.id), 0))) / 1e6 END"
)
_RAN_S = f"CASE WHEN OLD.state = 'running' THEN max(0, coalesce(NEW.finished_at, {_NOW_US}) - OLD.started_at) / 1e6 END"
_MODEL_LOADING = (
    "BEGIN INSERT INTO events (at, name, data) VALUES (NEW.model_since, 'model_loading', "
    "json_object('device', NEW.name, 'model', NEW.model)); END"
)
_TRIGGERS = {
    "jobs_enqueued": "AFTER INSERT ON jobs BEGIN INSERT INTO events (at, name, job_id, queue, data) "
    "VALUES (NEW.enqueued_at, 'job_enqueued', NEW.id, NEW.queue, json_object('state', NEW.state, 'task', NEW.task)); END",
    "jobs_moved": "AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state BEGIN "
    "INSERT INTO events (at, name, job_id, queue, data) "
    f"VALUES (CASE WHEN NEW.state = 'running' THEN NEW.started_at ELSE coalesce(NEW.finished_at, {_NOW_US}) END, "
    "CASE WHEN NEW.state = 'running' THEN 'attempt_started' "
    "WHEN NEW.state IN ('completed', 'cancelled', 'discarded') THEN 'job_finished' "
    "WHEN OLD.state = 'running' THEN 'attempt_finished' ELSE 'job_promoted' END, "
    "NEW.id, NEW.queue, json_object('state', NEW.state, 'before', OLD.state, 'attempt', NEW.attempt, 'lease', NEW.lease, "
    "'worker', NEW.worker_id, 'device', NEW.device, 'reserved_bytes', NEW.reserved_bytes, 'task', NEW.task, "
    "'preempted', json(CASE WHEN NEW.preemptions > OLD.preemptions THEN 'true' ELSE 'false' END), "
    f"'waited_s', {_WAITED_S}, 'ran_s', {_RAN_S})); END",
    "jobs_released": "AFTER UPDATE OF device ON jobs WHEN OLD.device IS NOT NULL AND NEW.device IS NULL BEGIN "
    "INSERT INTO events (at, name, job_id, queue, data) "
    f"VALUES ({_NOW_US}, 'device_released', NEW.id, NEW.queue, json_object('device', OLD.device, 'reserved_bytes', "
    "OLD.reserved_bytes, 'lease', NEW.lease)); END",
    "jobs_progressed": "AFTER UPDATE OF progress, progress_note ON jobs WHEN NEW.progress IS NOT NULL BEGIN "
    "INSERT INTO events (at, name, job_id, queue, data) "
    f"VALUES ({_NOW_US}, 'job_progressed', NEW.id, NEW.queue, "
    "json_object('progress', NEW.progress, 'note', NEW.progress_note, 'attempt', NEW.attempt, 'lease', NEW.lease)); END",
    "jobs_removed": "AFTER DELETE ON jobs BEGIN INSERT INTO events (at, name, job_id, queue, data) "
    f"VALUES ({_NOW_US}, 'job_removed', OLD.id, OLD.queue, json_object('state', OLD.state)); END",
    "logs_written": "AFTER INSERT ON logs BEGIN INSERT INTO events (at, name, job_id, data) "
    "VALUES (NEW.at, 'job_logged', NEW.job_id, json_object('seq', NEW.seq, 'lease', NEW.lease)); END",
    "devices_first_loading": f"AFTER INSERT ON devices WHEN NEW.model_since IS NOT NULL {_MODEL_LOADING}",
    "devices_loading": f"AFTER UPDATE OF model_since ON devices {_MODEL_LOADING}",
}


def record(
    connection: sqlite3.Connection,
    name: str,
    *,
    at_us: int,
    job_id: int | None = None,
    queue: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Append an event."""
    connection.execute(
        "INSERT INTO events (at, name, job_id, queue, data) VALUES (?, ?, ?, ?, ?)",
        (at_us, name, job_id, queue, json.dumps(data or {})),
    )


def add_follower(connection: sqlite3.Connection, name: str) -> bool:
    """Register a follower of all events from now on, and install the triggers with the first; returns whether it is new."""
    is_new = connection.execute(
        "INSERT OR IGNORE INTO followers (name, last_event_id) SELECT ?, coalesce(max(id), 0) FROM events", (name,)
    ).rowcount
    for trigger, body in _TRIGGERS.items():
        found = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = ?", (trigger,)).fetchone()
        if found is None or not found[0].endswith(body):  # of another version of gpuqueue
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            connection.execute(f"CREATE TRIGGER {trigger} {body}")
    return is_new == 1


def remove_follower(connection: sqlite3.Connection, name: str) -> None:
    """Remove a follower, and the triggers with the last."""
    connection.execute("DELETE FROM followers WHERE name = ?", (name,))
    if connection.execute("SELECT 1 FROM followers").fetchone() is None:
        for trigger in _TRIGGERS:
            connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")


def after(connection: Statements, follower: str, *, limit: int) -> list[Event] | None:
    """Return the events that a follower has not passed yet; None if it is not (or no longer) registered."""
    row = connection.execute("SELECT last_event_id FROM followers WHERE name = ?", (follower,)).fetchone()
    if row is None:
        return None
    statement = "SELECT id, at, name, job_id, queue, data FROM events WHERE id > ? ORDER BY id LIMIT ?"
    return [to_event(found) for found in connection.execute(statement, (row[0], limit))]


def advance(connection: sqlite3.Connection, follower: str, event_id: int) -> None:
    """Move a follower past the events up to this one; it never moves back."""
    connection.execute("UPDATE followers SET last_event_id = max(last_event_id, ?) WHERE name = ?", (event_id, follower))


def take(connection: sqlite3.Connection, follower: str, *, limit: int) -> list[Event]:
    """Return the follower's next events, and move it past them: no other worker gets them."""
    events = after(connection, follower, limit=limit) or []
    if events:
        advance(connection, follower, events[-1].id)
    return events


def prune(connection: sqlite3.Connection, *, before_us: int, forget_before_us: int = 0, limit: int) -> int:
    """Delete old events that every follower has read; returns how many. The newest stays, so that its id is never reused.

    Among the `limit` oldest events. A follower is removed if the first event that it has not read is from before
    `forget_before_us`: events are not kept forever for one that does not come back.
    """
    unread = "SELECT name, (SELECT at FROM events WHERE id > last_event_id ORDER BY id LIMIT 1) FROM followers"
    for name, at in connection.execute(unread).fetchall():
        if at is not None and at < forget_before_us:
            remove_follower(connection, name)
    # The limit is on the events that are looked at: behind one that a follower has not read, there are more of them.
    return connection.execute(
        "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < ? ORDER BY at LIMIT ?) "
        "AND id < (SELECT max(id) FROM events) AND id <= coalesce((SELECT min(last_event_id) FROM followers), id)",
        (before_us, limit),
    ).rowcount


def to_event(row: tuple[Any, ...]) -> Event:
    id_, at, name, job_id, queue, data = row
    return Event(id_, from_us(at), name, job_id, queue, json.loads(data or "{}"))
