"""Changes jobs outside an attempt: cancel, retry, expire, refuse, promote, size, prune; claims nothing.

Every function takes the connection of a write transaction that its caller started.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gpuqueue.domain import transitions
from gpuqueue.domain.answers import Demand
from gpuqueue.domain.errors import StateError, UnknownJob
from gpuqueue.domain.job import FINISHED, JobErrorRecord, State
from gpuqueue.store.sqlite.rows import from_error
from gpuqueue.store.sqlite.state_changes import assignments, update

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

DEMAND_CLASS_BYTES = 64 * 2**20
SUSPECT = -1  # the demand class of suspects without a device: no claim of ordinary jobs meets them
NEVER_FITS = 2**62  # the demand class of jobs that fit no device
UPKEEP_ROWS = 25  # that one of many transactions of upkeep changes: a producer waits for a millisecond at most
SCAN_LIMIT = 200  # maximum number of rows that one transaction moves, so that others do not wait long
ROWS_AT_ONCE = 500  # maximum number of rows of pruned jobs that one transaction deletes
_WAITING = "state IN ('scheduled', 'available', 'retryable')"
_UNSIZE = assignments(transitions.FORGET_DEMAND)  # `release_device` clears the model that a reservation kept
RETRY = update(transitions.MANUAL_RETRY, "id = ?")
DEMAND_CLASS = "SELECT demand_class FROM jobs WHERE id = ?"
SUSPECT_AGAIN = f"UPDATE jobs SET demand_class = {SUSPECT} WHERE id = ?"
CANCEL = update(transitions.CANCEL, "id = ?")
EXPIRE = update(transitions.EXPIRE, "id = ?")
REFUSE = update(transitions.REFUSE, "id = ?")
PROMOTE = update(
    transitions.PROMOTE,
    "id IN (SELECT id FROM jobs WHERE state IN ('scheduled', 'retryable') AND scheduled_at <= ? ORDER BY scheduled_at LIMIT ?)",
)
WAKE = update(
    transitions.WAKE,
    "id IN (SELECT id FROM jobs WHERE waiting_for = ? AND waiting_for IS NOT NULL AND state = 'retryable' LIMIT ?)",
)
UNSIZE = f"UPDATE jobs SET {_UNSIZE} WHERE id = ? AND {_WAITING}"
UNSIZE_RUNNING = f"UPDATE jobs SET {_UNSIZE} WHERE state = 'running' AND demand_class <> 0"
ASK_TO_STOP = "UPDATE jobs SET cancel_requested = 1 WHERE id = ? AND state = 'running'"


def ensure_queue(connection: Statements, name: str) -> None:
    """Ensure that the queue has a row."""
    connection.execute("INSERT OR IGNORE INTO queues (name) VALUES (?)", (name,))


def cancel(connection: sqlite3.Connection, job_id: int, *, now_us: int) -> State:
    """Cancel a waiting job immediately, ask a running one to stop, leave a finished one; returns the previous state.

    Raises: UnknownJob.
    """
    state, queue = _state_of(connection, job_id)
    if state is State.RUNNING:
        connection.execute(ASK_TO_STOP, (job_id,))
    elif state not in FINISHED:
        connection.execute(CANCEL, (now_us, job_id))
        count_finished(connection, {(queue, "cancelled"): 1})
    return state


def retry(connection: sqlite3.Connection, job_id: int, *, now_us: int) -> None:
    """Make a discarded, cancelled or postponed job available again, with its attempts and crashes reset.

    Raises: UnknownJob; StateError if it is running, already available, or completed.
    """
    state, queue = _state_of(connection, job_id)
    if state not in transitions.MANUAL_RETRY.sources:
        raise StateError(f"job {job_id} is {state}; only a discarded, cancelled, retryable or scheduled job can be retried")
    _retry(connection, job_id, now_us=now_us)
    if state in FINISHED:
        count_finished(connection, {(queue, str(state)): -1})


def retry_discarded(connection: sqlite3.Connection, job_ids: Sequence[int], *, now_us: int) -> int:
    """Make the discarded ones among these jobs available again; returns how many."""
    retried: Counter[tuple[str, str]] = Counter()
    for job_id in job_ids:
        row = connection.execute("SELECT queue FROM jobs WHERE id = ? AND state = 'discarded'", (job_id,)).fetchone()
        if row is not None:
            _retry(connection, job_id, now_us=now_us)
            retried[row[0], "discarded"] -= 1
    count_finished(connection, dict(retried))
    return -sum(retried.values())


def _retry(connection: sqlite3.Connection, job_id: int, *, now_us: int) -> None:
    (before,) = connection.execute(DEMAND_CLASS, (job_id,)).fetchone()
    connection.execute(RETRY, (now_us, job_id))
    if before == SUSPECT:
        connection.execute(SUSPECT_AGAIN, (job_id,))  # its death would cost a worker's other jobs an attempt again


def cancel_several(connection: sqlite3.Connection, job_ids: Sequence[int], *, now_us: int) -> tuple[list[int], list[int]]:
    """Cancel the waiting ones among these jobs, and ask the running ones to stop; returns the ids of (cancelled, asked)."""
    cancelled: list[int] = []
    asked: list[int] = []
    counted: Counter[tuple[str, str]] = Counter()
    for job_id in job_ids:
        row = connection.execute("SELECT state, queue FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or row[0] in FINISHED:
            continue
        if row[0] == State.RUNNING:
            connection.execute(ASK_TO_STOP, (job_id,))
            asked.append(job_id)
        else:
            connection.execute(CANCEL, (now_us, job_id))
            cancelled.append(job_id)
            counted[row[1], "cancelled"] += 1
    count_finished(connection, dict(counted))
    return cancelled, asked


def move_due(connection: sqlite3.Connection, *, now_us: int) -> list[int]:
    """Promote and expire the jobs that are due, so that a claim sees it; returns the ids of the expired ones."""
    promote_due(connection, now_us=now_us)
    return expire_due(connection, now_us=now_us)


def promote_due(connection: sqlite3.Connection, *, now_us: int) -> int:
    """Make due scheduled and retryable jobs available; returns how many.

    Their place in the queue is their due time, so that a job postponed for long does not go to the end.
    """
    return connection.execute(PROMOTE, (now_us, SCAN_LIMIT)).rowcount


def promote_waiting_for(connection: sqlite3.Connection, backend: str) -> int:
    """Make jobs postponed for this backend available, ahead of later ones; returns how many, UPKEEP_ROWS at most."""
    return connection.execute(WAKE, (backend, UPKEEP_ROWS)).rowcount


def expire_due(connection: sqlite3.Connection, *, now_us: int) -> list[int]:
    """Discard waiting jobs that have expired, with the code `expired`; returns their ids."""
    rows = connection.execute(
        "SELECT id, queue FROM jobs WHERE expires_at IS NOT NULL AND finished_at IS NULL AND expires_at <= ? "
        f"AND {_WAITING} LIMIT ?",
        (now_us, SCAN_LIMIT),
    ).fetchall()
    if rows:
        error = JobErrorRecord("expired", "expired before it could start")
        _discard_all(connection, EXPIRE, rows, error, now_us=now_us)
    return [row[0] for row in rows]


def refuse_waiting(connection: sqlite3.Connection, queue: str, *, message: str, now_us: int) -> list[int]:
    """Discard a queue's available jobs with the code `unavailable`; returns their ids."""
    rows = connection.execute(
        "SELECT id, queue FROM jobs WHERE state = 'available' AND queue = ? LIMIT ?", (queue, SCAN_LIMIT)
    ).fetchall()
    if rows:
        _discard_all(connection, REFUSE, rows, JobErrorRecord("unavailable", message), now_us=now_us)
    return [row[0] for row in rows]


def refuse_one(connection: sqlite3.Connection, job_id: int, *, message: str, now_us: int) -> bool:
    """Discard one waiting job with the code `unavailable`; returns whether it was still waiting."""
    row = connection.execute(f"SELECT id, queue FROM jobs WHERE id = ? AND {_WAITING}", (job_id,)).fetchone()
    if row is None:
        return False
    _discard_all(connection, REFUSE, [row], JobErrorRecord("unavailable", message), now_us=now_us)
    return True


def set_demands(connection: sqlite3.Connection, demands: Iterable[tuple[int, Demand]], *, largest_bytes: int) -> None:
    """Record the device requirements of waiting jobs, which puts them into their demand class.

    A demand larger than every device's budget goes to a separate class, so that it never blocks jobs that fit.
    """
    connection.executemany(
        "UPDATE jobs SET demand_model = ?, demand_bytes = ?, demand_class = ? WHERE id = ? AND state = 'available'",
        [
            (
                demand.model,
                demand.vram_bytes,
                demand_class(demand.vram_bytes) if demand.vram_bytes <= largest_bytes else NEVER_FITS,
                job_id,
            )
            for job_id, demand in demands
        ],
    )


def demand_class(vram_bytes: int) -> int:
    """Return the class of a demand: at least 1, because 0 means that the demand is not known yet."""
    return 1 + vram_bytes // DEMAND_CLASS_BYTES


def forget_demands(connection: sqlite3.Connection, job_ids: Iterable[int]) -> None:
    """Put waiting jobs back into the class 'not known yet', after what determines their size has changed."""
    connection.executemany(UNSIZE, [(job_id,) for job_id in job_ids])


PRUNABLE = (
    "SELECT id, queue FROM jobs WHERE state = ? AND finished_at IS NOT NULL AND finished_at < ? AND device IS NULL "
    "AND id < (SELECT max(id) FROM jobs) ORDER BY finished_at LIMIT ?"
)
# What belongs to a job: from its end, so that one with very many rows can be pruned over several transactions.
_PARTS = tuple(
    f"DELETE FROM {table} WHERE job_id = ? AND {key} IN (SELECT {key} FROM {table} WHERE job_id = ? ORDER BY {key} DESC LIMIT ?)"
    for table, key in (("chunks", "seq"), ("logs", "seq"), ("attempts", "lease"), ("payloads", "kind"))
)


def prune(connection: sqlite3.Connection, state: State, *, before_us: int, limit: int) -> tuple[int, bool]:
    """Delete up to `limit` jobs in a finished state that finished before a given time, with everything that belongs to them.

    The newest job stays, so that its id is never reused.
    Returns: the number of deleted jobs, and whether ROWS_AT_ONCE ended it; the job that is next may have lost a part by then.
    """
    removed: Counter[tuple[str, str]] = Counter()
    left = ROWS_AT_ONCE
    for job_id, queue in connection.execute(PRUNABLE, (str(state), before_us, min(limit, ROWS_AT_ONCE))).fetchall():
        for part in _PARTS:
            left -= connection.execute(part, (job_id, job_id, left)).rowcount
        if left <= 0:
            break
        connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        left -= 1
        removed[queue, str(state)] -= 1
    count_finished(connection, dict(removed))
    return -removed.total(), left <= 0


def count_finished(connection: sqlite3.Connection, changes: dict[tuple[str, str], int]) -> None:
    """Change the counters of finished jobs: {(queue, state): change}."""
    connection.executemany(
        "INSERT INTO counters (queue, state, count) VALUES (?, ?, ?) "
        "ON CONFLICT (queue, state) DO UPDATE SET count = count + excluded.count",
        [(queue, state, change) for (queue, state), change in changes.items()],
    )


def _state_of(connection: sqlite3.Connection, job_id: int) -> tuple[State, str]:
    row = connection.execute("SELECT state, queue FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise UnknownJob(job_id)
    return State(row[0]), row[1]


def _discard_all(
    connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[int, str]], error: JobErrorRecord, *, now_us: int
) -> None:
    connection.executemany(statement, [(now_us, from_error(error), row[0]) for row in rows])
    count_finished(connection, dict(Counter((row[1], "discarded") for row in rows)))
