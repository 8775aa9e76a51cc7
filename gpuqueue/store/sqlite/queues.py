"""Reads and writes the rows of queues: manual pauses, and the holds that workers saw."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import Pause
from gpuqueue.store.sqlite.events import record
from gpuqueue.store.sqlite.jobs import ensure_queue


def pause(connection: sqlite3.Connection, queue: str, pause: Pause) -> None:
    """Pause a queue manually; no job of it is claimed after this commits."""
    ensure_queue(connection, queue)
    until = None if pause.until is None else to_us(pause.until)
    connection.execute(
        "UPDATE queues SET paused_at = ?, paused_until = ?, paused_by = ?, pause_reason = ? WHERE name = ?",
        (to_us(pause.at), until, pause.by, pause.reason, queue),
    )
    record(connection, "queue_paused", at_us=to_us(pause.at), queue=queue, data={"by": pause.by, "reason": pause.reason})


def resume(connection: sqlite3.Connection, queue: str, *, by: str, now_us: int) -> bool:
    """End a manual pause; returns whether there was one that had not expired."""
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
    """Write the events queue_held and queue_released for queues with reasons that changed since the last call."""
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
