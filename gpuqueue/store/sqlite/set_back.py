"""Moves what was noted under a later time to now, after the clock was set back; reads no clock."""

from __future__ import annotations

import sqlite3

# Whatever ends at a time after such a moment keeps its length: a breaker, a pause.
STATEMENTS = (
    "UPDATE backends SET retry_at = :now + (retry_at - checked_at), since = min(since, :now), checked_at = :now "
    "WHERE checked_at > :now",
    "UPDATE queues SET paused_until = :now + (paused_until - paused_at), paused_at = :now WHERE paused_at > :now",
    "UPDATE queues SET rate_at = :now WHERE rate_at > :now",
    "UPDATE devices SET model_since = :now WHERE model_since > :now",
    "UPDATE jobs SET started_at = :now WHERE state = 'running' AND started_at > :now",
)


def set_back(connection: sqlite3.Connection, *, now_us: int) -> None:
    """Bring breakers, pauses, rates and running attempts that began in the future to now; needs a write transaction."""
    for statement in STATEMENTS:
        connection.execute(statement, {"now": now_us})
