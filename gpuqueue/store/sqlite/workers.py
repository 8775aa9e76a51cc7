"""Owns the rows of workers, the shared configuration, backends and devices: who lives, and what they agreed on and saw.

Every function takes the connection of a write transaction that its caller began.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from gpuqueue.domain.job import Hold, Pause, Reading, Resident
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.store.sqlite.events import record
from gpuqueue.store.sqlite.jobs import ensure_queue, forget_demands


def accept_configuration(
    connection: sqlite3.Connection, *, digest: str, settings: Mapping[str, Any], force: bool, now_us: int
) -> Mapping[str, Any] | None:
    """Make these settings the shared ones, unless a live worker runs with others; returns those others then, else None.

    `force` takes the new ones in any case. New settings put waiting jobs back into the class 'demand not known yet'.
    """
    row = connection.execute("SELECT digest, settings FROM configuration WHERE id = 1").fetchone()
    if row is not None and row[0] == digest:
        return None
    if row is not None and not force:
        lives = connection.execute("SELECT 1 FROM workers WHERE expires_at > ? AND digest <> ?", (now_us, digest)).fetchone()
        if lives is not None:
            theirs: Mapping[str, Any] = json.loads(row[1])
            return theirs
    connection.execute(
        "INSERT OR REPLACE INTO configuration (id, digest, settings, accepted_at) VALUES (1, ?, ?, ?)",
        (digest, json.dumps(settings), now_us),
    )
    for name in settings.get("queues", {}):
        ensure_queue(connection, name)
    forget_demands(connection)
    return None


def register(
    connection: sqlite3.Connection,
    worker_id: str,
    *,
    host: str,
    pid: int,
    queues: tuple[str, ...] | None,
    digest: str,
    runtime_dir: str,
    expires_at_us: int,
    now_us: int,
) -> bool:
    """Add a live worker; returns False when the shared settings are not, or no longer, those of its digest."""
    agreed = connection.execute("SELECT digest FROM configuration WHERE id = 1").fetchone()
    if agreed is not None and agreed[0] != digest:
        return False
    connection.execute(
        "INSERT INTO workers (id, host, pid, queues, started_at, expires_at, digest, runtime_dir) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (worker_id, host, pid, None if queues is None else json.dumps(queues), now_us, expires_at_us, digest, runtime_dir),
    )
    record(connection, "worker_started", at_us=now_us, data={"worker": worker_id, "host": host, "pid": pid})
    return True


def extend(connection: sqlite3.Connection, worker_id: str, *, expires_at_us: int) -> bool:
    """Extend the lease of everything the worker runs; returns False when it was rescued meanwhile and owns nothing."""
    return connection.execute("UPDATE workers SET expires_at = ? WHERE id = ?", (expires_at_us, worker_id)).rowcount == 1


def unregister(connection: sqlite3.Connection, worker_id: str, *, now_us: int) -> None:
    """Remove a worker that ended in good order; what it may have left is rescued by its missing row."""
    if connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,)).rowcount:
        record(connection, "worker_stopped", at_us=now_us, data={"worker": worker_id})


def publish_holds(connection: sqlite3.Connection, worker_id: str, holds: Mapping[str, Sequence[Hold]]) -> None:
    """Write what a worker's own plugins hold."""
    told = {
        queue: [[hold.reason, hold.detail, None if hold.until is None else to_us(hold.until), hold.plugin] for hold in found]
        for queue, found in holds.items()
    }
    connection.execute("UPDATE workers SET holds = ? WHERE id = ?", (json.dumps(told) if told else None, worker_id))


def pause(connection: sqlite3.Connection, queue: str, pause: Pause) -> None:
    """Pause a queue by hand; no claim of it begins after this commits."""
    ensure_queue(connection, queue)
    until = None if pause.until is None else to_us(pause.until)
    connection.execute(
        "UPDATE queues SET paused_at = ?, paused_until = ?, paused_by = ?, pause_reason = ? WHERE name = ?",
        (to_us(pause.at), until, pause.by, pause.reason, queue),
    )
    record(connection, "queue_paused", at_us=to_us(pause.at), queue=queue, data={"by": pause.by, "reason": pause.reason})


def resume(connection: sqlite3.Connection, queue: str, *, by: str, now_us: int) -> bool:
    """Lift a manual pause; returns whether there was one that had not ended by itself."""
    was_paused = (
        connection.execute(
            "UPDATE queues SET paused_at = NULL, paused_until = NULL, paused_by = NULL, pause_reason = NULL "
            "WHERE name = ? AND paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > ?)",
            (queue, now_us),
        ).rowcount
        == 1
    )
    if was_paused:
        record(connection, "queue_resumed", at_us=now_us, queue=queue, data={"by": by})
    return was_paused


def note_holds(connection: sqlite3.Connection, holds: Mapping[str, tuple[Hold, ...]], *, now_us: int) -> None:
    """Write the events queue_held and queue_released for queues whose reasons changed since the last note."""
    for queue, reasons in holds.items():
        now = json.dumps(sorted(hold.reason for hold in reasons))
        row = connection.execute("SELECT holds FROM queues WHERE name = ?", (queue,)).fetchone()
        before = "[]" if row is None or row[0] is None else row[0]
        if now == before:
            continue
        ensure_queue(connection, queue)
        connection.execute("UPDATE queues SET holds = ? WHERE name = ?", (now, queue))
        data = {"reasons": json.loads(now), "details": [hold.detail for hold in reasons]}
        record(connection, "queue_held" if reasons else "queue_released", at_us=now_us, queue=queue, data=data)


def backend_lost(
    connection: sqlite3.Connection, name: str, *, error: str, probe_every_s: float, longest_s: float, now_us: int
) -> datetime | None:
    """Open a backend's breaker, or keep it open; returns when it is asked again where it was closed, else None.

    The wait doubles with each outage since the last success, from probe_every_s to longest_s, so that a backend that
    answers probes and fails jobs is not hammered.
    """
    row = connection.execute("SELECT available, failures FROM backends WHERE name = ?", (name,)).fetchone()
    was_available, failures = (1, 0) if row is None else row
    failures += 1 if was_available else 0
    wait_us = int(min(probe_every_s * 2 ** min(failures - 1, 20), longest_s) * 1e6)
    connection.execute(
        "INSERT INTO backends (name, available, failures, since, retry_at, checked_at, error) VALUES (?, 0, ?, ?, ?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET since = CASE WHEN available THEN excluded.since ELSE since END, available = 0, "
        "failures = excluded.failures, retry_at = excluded.retry_at, checked_at = excluded.checked_at, error = excluded.error",
        (name, failures, now_us, now_us + wait_us, now_us, error),
    )
    if not was_available:
        return None
    record(connection, "backend_lost", at_us=now_us, data={"backend": name, "error": error})
    return from_us(now_us + wait_us)


def backend_answered(connection: sqlite3.Connection, name: str, *, worked: bool, now_us: int) -> bool:
    """Close a backend's breaker; `worked` (a job succeeded on it) also forgets its outages. Returns whether it was open."""
    row = connection.execute("SELECT available FROM backends WHERE name = ?", (name,)).fetchone()
    was_open = row is not None and not row[0]
    connection.execute(
        "INSERT INTO backends (name, checked_at) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET available = 1, since = NULL, "
        "retry_at = NULL, checked_at = excluded.checked_at, error = NULL, failures = CASE WHEN ? THEN 0 ELSE failures END",
        (name, now_us, int(worked)),
    )
    if was_open:
        record(connection, "backend_recovered", at_us=now_us, data={"backend": name})
    return was_open


def note_models(connection: sqlite3.Connection, name: str, models: Mapping[str, int]) -> None:
    """Write which models a backend has on its disk."""
    connection.execute(
        "INSERT INTO backends (name, models) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET models = excluded.models",
        (name, json.dumps(models, sort_keys=True)),
    )


def publish_reading(
    connection: sqlite3.Connection, device: str, reading: Reading | None, residents: tuple[Resident, ...] | None, *, now_us: int
) -> str | None:
    """Write what a device was seen to be; None leaves what was there. A change to or from lost becomes an event.

    Returns: the name of that event, None without one.
    """
    name: str | None = None
    row = connection.execute("SELECT reading, residents FROM devices WHERE name = ?", (device,)).fetchone()
    old_reading, old_residents = (None, None) if row is None else row
    if reading is not None:
        was_lost = bool(old_reading and json.loads(old_reading).get("lost"))
        if was_lost != bool(reading.lost):
            name = "device_lost" if reading.lost else "device_recovered"
            record(connection, name, at_us=now_us, data={"device": device, "error": reading.lost})
        old_reading = json.dumps({**asdict(reading), "at": to_us(reading.at)})
    if residents is not None:
        old_residents = json.dumps([asdict(resident) for resident in residents])
    connection.execute(
        "INSERT INTO devices (name, reading, residents) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET reading = excluded.reading, residents = excluded.residents",
        (device, old_reading, old_residents),
    )
    return name
