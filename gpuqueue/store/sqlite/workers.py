"""Reads and writes the rows of workers and of their shared configuration.

Every function takes the connection of a write transaction that its caller started.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import PartInfo
from gpuqueue.store.sqlite.claims import sized
from gpuqueue.store.sqlite.events import record
from gpuqueue.store.sqlite.jobs import UNSIZE_RUNNING, UPKEEP_ROWS, ensure_queue, forget_demands

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements


def accept_configuration(
    connection: sqlite3.Connection,
    *,
    digest: str,
    settings: Mapping[str, Any],
    force: bool,
    now_us: int,
    alive: Mapping[str, bool | None] = MappingProxyType({}),
) -> tuple[Mapping[str, Any] | None, bool]:
    """Make these settings the shared ones, unless a live worker runs with others; then return those, else None.

    A worker that is not in `alive`, which knows some better, lives until its lease ends. `force` accepts the new ones in any
    case. New settings put waiting jobs back into the class 'demand not known yet': UPKEEP_ROWS jobs a call, before the settings
    are accepted, so that none keeps its old demand if the worker dies in between.
    Returns: (the other settings, whether nothing is left to do).
    """
    row = connection.execute("SELECT digest, settings FROM configuration WHERE id = 1").fetchone()
    if row is not None and row[0] == digest:
        return None, True
    if row is not None and not force:
        others = connection.execute("SELECT id, expires_at > ? FROM workers WHERE digest <> ?", (now_us, digest)).fetchall()
        known = {worker_id: is_alive for worker_id, is_alive in alive.items() if is_alive is not None}
        if any(known.get(worker_id, has_lease) for worker_id, has_lease in others):
            theirs: Mapping[str, Any] = json.loads(row[1])
            return theirs, True
    outdated = sized(connection, limit=UPKEEP_ROWS, suspects=True)  # their queue may have a device now
    forget_demands(connection, outdated)
    if len(outdated) == UPKEEP_ROWS:
        return None, False
    connection.execute(UNSIZE_RUNNING)
    connection.execute(
        "INSERT OR REPLACE INTO configuration (id, digest, settings, accepted_at) VALUES (1, ?, ?, ?)",
        (digest, json.dumps(settings), now_us),
    )
    for name in settings.get("queues", {}):
        ensure_queue(connection, name)
    return None, True


def runtime_base(connection: Statements, host: str, uid: int) -> str | None:
    """Return the folder that a user's processes on a host use for their sockets, None before the first."""
    row = connection.execute("SELECT path FROM runtime_bases WHERE host = ? AND uid = ?", (host, uid)).fetchone()
    return None if row is None else str(row[0])


def agree_on_runtime_base(connection: sqlite3.Connection, host: str, uid: int, path: str, *, instead_of: str | None) -> str:
    """Make this folder the one that they use, if it still is `instead_of`; returns the one that it is now."""
    recorded = runtime_base(connection, host, uid)
    if recorded is not None and recorded != instead_of:
        return recorded
    connection.execute("INSERT OR REPLACE INTO runtime_bases (host, uid, path) VALUES (?, ?, ?)", (host, uid, path))
    return path


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
    """Add a live worker with a lease from now to `expires_at_us`.

    Returns False if the shared settings do not (or no longer) match its digest.
    """
    agreed = connection.execute("SELECT digest FROM configuration WHERE id = 1").fetchone()
    if agreed is not None and agreed[0] != digest:
        return False
    connection.execute(
        "INSERT INTO workers (id, host, pid, queues, started_at, expires_at, lease_us, digest, runtime_dir) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            worker_id,
            host,
            pid,
            None if queues is None else json.dumps(queues),
            now_us,
            expires_at_us,
            expires_at_us - now_us,
            digest,
            runtime_dir,
        ),
    )
    record(connection, "worker_started", at_us=now_us, data={"worker": worker_id, "host": host, "pid": pid})
    return True


def extend(connection: sqlite3.Connection, worker_id: str, *, expires_at_us: int, parts: Sequence[PartInfo] = ()) -> bool:
    """Extend the lease of everything the worker runs, and publish its parts; returns False if it was rescued and owns nothing.

    This is the worker's sign of life, so the row always changes, also under a clock that stands still.
    """
    told = json.dumps([part._asdict() for part in parts]) if parts else None
    row = (expires_at_us, expires_at_us, told, worker_id)
    statement = "UPDATE workers SET expires_at = ? + (expires_at = ?), parts = ? WHERE id = ?"
    return connection.execute(statement, row).rowcount == 1


def unregister(connection: sqlite3.Connection, worker_id: str, *, now_us: int) -> None:
    """Remove a worker that stopped cleanly; anything it left is rescued because its row is missing."""
    if connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,)).rowcount:
        record(connection, "worker_stopped", at_us=now_us, data={"worker": worker_id})


def publish_holds(connection: sqlite3.Connection, worker_id: str, holds: Mapping[str, Sequence[Hold]]) -> None:
    """Publish the holds by a worker's own plugins."""
    told = {
        queue: [{**asdict(hold), "until": None if hold.until is None else to_us(hold.until)} for hold in found]
        for queue, found in holds.items()
    }
    connection.execute("UPDATE workers SET holds = ? WHERE id = ?", (json.dumps(told) if told else None, worker_id))
