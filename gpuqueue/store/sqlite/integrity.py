"""Checks a database file with SQLite's own check and for contradictions between rows; repairs nothing.

Rows contradict each other only after a bug in this program, a disk fault, or a manual change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gpuqueue.domain import transitions
from gpuqueue.domain.errors import NotADatabase
from gpuqueue.domain.findings import Finding
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.connections import read_only
from gpuqueue.store.sqlite.state_changes import update

SHOWN_IDS = 5
_FINISHED = "state IN ('completed', 'cancelled', 'discarded')"
_COUNTED = f"SELECT queue, state, count(*) FROM jobs WHERE {_FINISHED} GROUP BY queue, state"
_LOOK = "inspect it with: gpuqueue job ID; if it matters, restore a backup"


class _Promise(NamedTuple):
    """An invariant of all rows; `broken_by` selects the ids of the jobs that violate it."""

    check: str
    broken_by: str
    detail: str
    mend: str


def _belongs_to_a_job(table: str) -> _Promise:
    of_none = "job_id NOT IN (SELECT id FROM jobs)"
    return _Promise(
        table,
        f"SELECT DISTINCT job_id FROM {table} WHERE {of_none}",
        f"rows in `{table}` for jobs that do not exist",
        f"they only take up space; delete them: sqlite3 {{path}} 'DELETE FROM {table} WHERE {of_none}'",
    )


_PROMISES = (
    _Promise(
        "state",
        f"SELECT id FROM jobs WHERE state NOT IN ('scheduled', 'available', 'running', 'retryable') AND NOT {_FINISHED}",
        "a state that does not exist",
        _LOOK,
    ),
    _Promise(
        "finished_at",
        f"SELECT id FROM jobs WHERE (finished_at IS NOT NULL) <> ({_FINISHED})",
        "finished without a finish time, or the other way round",
        _LOOK,
    ),
    _Promise(
        "reservation",
        "SELECT id FROM jobs WHERE device IS NULL AND reserved_bytes > 0",
        "memory is reserved, but on no device",
        "it blocks nothing; correct it: sqlite3 {path} 'UPDATE jobs SET reserved_bytes = 0 WHERE device IS NULL'",
    ),
    _Promise(
        "attempt",
        "SELECT id FROM jobs WHERE attempt < 0 OR attempt > lease",
        "more attempts than claims, or a negative number of attempts",
        _LOOK,
    ),
    _Promise(
        "running",
        "SELECT id FROM jobs WHERE state = 'running' AND (worker_id IS NULL OR started_at IS NULL)",
        "running without a worker or a start time, so no worker rescues it",
        f'make it available again: sqlite3 {{path}} "{update(transitions.REPAIR, "id = ID")}"',
    ),
    _Promise(
        # Earlier versions left it set on jobs that completed anyway, and old files still contain those.
        "cancel_requested",
        "SELECT id FROM jobs WHERE cancel_requested <> 0 AND state NOT IN ('running', 'completed')",
        "asked to stop, but not running, so its next attempt would stop immediately",
        "clear the request: sqlite3 {path} \"UPDATE jobs SET cancel_requested = 0 WHERE state <> 'running'\"",
    ),
    _Promise(
        "arguments",
        "SELECT id FROM jobs WHERE arguments IS NULL AND id NOT IN (SELECT job_id FROM payloads WHERE kind = 'arguments')",
        "the arguments are lost",
        "restore a backup, or cancel the job and enqueue it again",
    ),
    _Promise(
        "result",
        "SELECT id FROM jobs WHERE state = 'completed' AND result IS NULL "
        "AND id NOT IN (SELECT job_id FROM payloads WHERE kind = 'result')",
        "completed, but the result is lost",
        "restore a backup, or enqueue the job again",
    ),
    *map(_belongs_to_a_job, ("payloads", "chunks", "logs", "attempts")),
)


def check_file(path: Path) -> list[Finding]:
    """Check a file without changing it; its rows only if its schema is the newest.

    Raises: NotADatabase; another StoreError if it cannot be read.
    """
    with read_only(path) as connection:
        try:
            return _check(connection, path)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return [_damage(str(error), path)]


def _check(connection: sqlite3.Connection, path: Path) -> list[Finding]:
    version = migrate.version(connection)
    if version is None and migrate.table_names(connection):
        raise NotADatabase(f"{path} is an SQLite database, but not a gpuqueue database; give another path")
    lines = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
    if lines or version != migrate.head():
        return [_damage(line, path) for line in lines]
    connection.execute("BEGIN")
    return list(contradictions(connection, path))


def _damage(line: str, path: Path) -> Finding:
    mend = (
        "stop the workers and restore a backup: gpuqueue db restore FILE; without one, save what can "
        f"be read: sqlite3 {path} .recover | sqlite3 saved.db"
    )
    return Finding("sqlite", line, mend)


def contradictions(connection: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    """Yield the contradictions between rows; needs a connection inside one read transaction."""
    stored = {(queue, state): count for queue, state, count in connection.execute(_COUNTED)}
    counters = connection.execute("SELECT queue, state, count FROM counters WHERE count <> 0")
    counted = {(queue, state): count for queue, state, count in counters}
    for queue, state in sorted(stored.keys() | counted.keys()):
        there, told = stored.get((queue, state), 0), counted.get((queue, state), 0)
        if there != told:
            yield Finding(
                "counters",
                f"{told} {state} jobs of {queue} are counted, but {there} are stored",
                f"only the numbers in `gpuqueue status` are wrong; recount: sqlite3 {path} "
                f'"DELETE FROM counters; INSERT INTO counters {_COUNTED}"',
            )
    for promise in _PROMISES:
        ids = sorted(row[0] for row in connection.execute(promise.broken_by))
        if ids:
            yield Finding(promise.check, f"{promise.detail}: {_named(ids)}", promise.mend.format(path=path))


def _named(ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return f"job {ids[0]}"
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return f"jobs {', '.join(map(str, ids[:SHOWN_IDS]))}{more}"
