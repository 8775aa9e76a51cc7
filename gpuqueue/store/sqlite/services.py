"""Reads and writes the rows of singleton services: which worker runs each, and its reported status; runs nothing.

Every function takes a connection; those that change rows need it inside a write transaction that the caller started.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import ServiceInfo

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

# A worker that is silent for its lease loses its row, by a clock that no step moves.
HELD = (
    "SELECT term, services.expires_at FROM services JOIN workers ON workers.id = services.worker_id "
    "WHERE services.name = ? AND services.worker_id <> ?"
)


def is_held(connection: sqlite3.Connection, name: str, *, by_other_than: str, silent: tuple[int, int] | None) -> bool:
    """Return whether another worker runs the service and has extended its lease since `silent` (term, end of the lease)."""
    found = connection.execute(HELD, (name, by_other_than)).fetchone()
    return found is not None and found != silent


def take(
    connection: sqlite3.Connection,
    name: str,
    worker_id: str,
    *,
    silent: tuple[int, int] | None = None,
    expires_at_us: int,
    now_us: int,
) -> int | None:
    """Take a service over; returns the new term, None if another worker runs it.

    `silent` is a lease (its term and end) that the caller has seen unchanged for too long.
    """
    if is_held(connection, name, by_other_than=worker_id, silent=silent):
        return None
    connection.execute(
        "INSERT INTO services (name, worker_id, term, since, expires_at) VALUES (?, ?, 1, ?, ?) ON CONFLICT (name) DO UPDATE "
        "SET worker_id = excluded.worker_id, term = term + 1, since = excluded.since, expires_at = excluded.expires_at",
        (name, worker_id, now_us, expires_at_us),
    )
    term: int = connection.execute("SELECT term FROM services WHERE name = ?", (name,)).fetchone()[0]
    return term


def extend(connection: sqlite3.Connection, name: str, term: int, *, expires_at_us: int) -> bool:
    """Extend the lease on a service, whose end always changes; returns False if another worker took it over."""
    statement = "UPDATE services SET expires_at = ? + (expires_at = ?) WHERE name = ? AND term = ? AND worker_id IS NOT NULL"
    return connection.execute(statement, (expires_at_us, expires_at_us, name, term)).rowcount == 1


def release(connection: sqlite3.Connection, name: str, term: int) -> None:
    """Give a service up, for another worker to take over."""
    connection.execute("UPDATE services SET worker_id = NULL, expires_at = NULL WHERE name = ? AND term = ?", (name, term))


def note(connection: sqlite3.Connection, name: str, term: int, status: Mapping[str, Any], *, now_us: int) -> bool:
    """Write a service's reported status; returns False if another worker took it over."""
    statement = "UPDATE services SET status = ?, noted_at = ? WHERE name = ? AND term = ?"
    return connection.execute(statement, (json.dumps(status), now_us, name, term)).rowcount == 1


def services(connection: Statements, *, now_us: int) -> list[ServiceInfo]:
    """Return every service that a worker ever ran, by name."""
    rows = connection.execute(
        "SELECT services.name, workers.id, term, since, services.expires_at, status, noted_at FROM services LEFT JOIN workers "
        "ON workers.id = services.worker_id AND workers.expires_at > ? AND services.expires_at > ? ORDER BY services.name",
        (now_us, now_us),
    )
    return [
        ServiceInfo(
            name=name,
            worker_id=worker_id,
            term=term,
            since=None if since is None else from_us(since),
            expires_at=None if expires_at is None else from_us(expires_at),
            status=json.loads(status or "{}"),
            noted_at=None if noted_at is None else from_us(noted_at),
        )
        for name, worker_id, term, since, expires_at, status, noted_at in rows
    ]
