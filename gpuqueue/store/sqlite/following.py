"""Reads for programs that copy the queue elsewhere: their positions in the events, and many jobs at once; changes nothing.

Every function takes a connection; a consistent copy needs all of them inside one read transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

from gpuqueue.domain.job import FINISHED, Entry, LogLine, Record, State
from gpuqueue.domain.units import from_us
from gpuqueue.store.sqlite.rows import JOB_COLUMNS, get_payload, to_job

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

_ORDERS = {
    State.AVAILABLE: ("priority DESC", "scheduled_at", "id"),
    State.RUNNING: ("started_at", "id"),
    State.SCHEDULED: ("scheduled_at", "id"),
    State.RETRYABLE: ("scheduled_at", "id"),
    **{state: ("finished_at", "id") for state in FINISHED},
}
RECORDS_AT_ONCE = 500


def follower_position(connection: Statements, follower: str) -> int | None:
    row = connection.execute("SELECT last_event_id FROM followers WHERE name = ?", (follower,)).fetchone()
    return None if row is None else int(row[0])


def followers(connection: Statements) -> dict[str, datetime | None]:
    """Return the time of the first event that each follower has not passed: {name: time or None}."""
    rows = connection.execute(
        "SELECT name, (SELECT at FROM events WHERE id > last_event_id ORDER BY id LIMIT 1) FROM followers ORDER BY name"
    )
    return {name: None if at is None else from_us(at) for name, at in rows}


def last_event_id(connection: Statements) -> int:
    (found,) = connection.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    return int(found)


def entries(
    connection: Statements, queue: str, states: Iterable[State], *, limit: int | None = None, newest_first: bool = False
) -> list[Entry]:
    """Return a queue's jobs in states that share an order: by when they run, started, are due or finished."""
    wanted = sorted(states)
    columns = _ORDERS[wanted[0]]
    if len(wanted) > 1 and wanted[0] in FINISHED:  # the index has each state in this order, not all of them
        parts = [entries(connection, queue, [state], limit=limit, newest_first=newest_first) for state in wanted]
        return sorted(chain(*parts), key=_by_finish, reverse=newest_first)[:limit]
    if newest_first:
        columns = tuple(name.removesuffix(" DESC") if name.endswith(" DESC") else f"{name} DESC" for name in columns)
    named = ", ".join(f"'{state}'" for state in wanted)
    which = f"state = {named}" if len(wanted) == 1 else f"state IN ({named})"
    if wanted[0] in FINISHED:
        which += " AND finished_at IS NOT NULL"
    elif wanted[0] in (State.SCHEDULED, State.RETRYABLE):
        which += " AND state IN ('scheduled', 'retryable')"  # as the index `jobs_due` spells it
    rows = connection.execute(
        f"SELECT id, priority, scheduled_at, finished_at FROM jobs WHERE {which} AND queue = ? "
        f"ORDER BY {', '.join(columns)} LIMIT ?",
        (queue, -1 if limit is None else limit),
    )
    return [
        Entry(id_, priority, from_us(scheduled_at), None if finished_at is None else from_us(finished_at))
        for id_, priority, scheduled_at, finished_at in rows
    ]


def _by_finish(entry: Entry) -> tuple[datetime | None, int]:
    return entry.finished_at, entry.id


def finished_by_minute(connection: Statements, queue: str, states: Iterable[State], *, since_us: int) -> dict[int, int]:
    """Count the stored jobs of a queue by the minute they finished in: {minutes since 1970: number}."""
    named = ", ".join(f"'{state}'" for state in states)
    rows = connection.execute(
        f"SELECT finished_at / 60000000, count(*) FROM jobs WHERE finished_at IS NOT NULL AND finished_at >= ? AND queue = ? "
        f"AND state IN ({named}) GROUP BY 1",
        (since_us, queue),
    )
    return dict(rows.fetchall())


def records(connection: Statements, ids: Iterable[int]) -> dict[int, Record]:
    """Return jobs with their results and log lines: {id: record}; deleted jobs are left out."""
    found: dict[int, Record] = {}
    wanted = list(ids)
    for start in range(0, len(wanted), RECORDS_AT_ONCE):
        part = wanted[start : start + RECORDS_AT_ONCE]
        marks = ", ".join("?" * len(part))
        lines: dict[int, list[LogLine]] = {}
        for job_id, seq, lease, at, message in connection.execute(
            f"SELECT job_id, seq, lease, at, message FROM logs WHERE job_id IN ({marks}) ORDER BY job_id, seq", part
        ):
            lines.setdefault(job_id, []).append(LogLine(seq, lease, from_us(at), message))
        rows = connection.execute(f"SELECT {JOB_COLUMNS}, result FROM jobs WHERE id IN ({marks})", part).fetchall()
        for *columns, result in rows:
            job = to_job(connection, tuple(columns))
            if job.state is State.COMPLETED and result is None:
                result = get_payload(connection, job.id, "result")
            found[job.id] = Record(job, result, tuple(lines.get(job.id, ())))
    return found
