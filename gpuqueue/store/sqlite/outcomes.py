"""Ends attempts: finish, fail, give back, rescue, release a device; the lease number fences every write.

Every function takes the connection of a write transaction that its caller started. A write under a lost lease changes nothing
and reports that.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from gpuqueue.domain import transitions
from gpuqueue.domain.job import FINISHED, JobErrorRecord, Lease, State
from gpuqueue.domain.outcomes import Completed, Crashed, Ended, Outcome, Postponed, Report, Rescue, Rescued, crash_of
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import RESTARTED_IN, THROWN_IN, Reservation
from gpuqueue.store.sqlite.events import record
from gpuqueue.store.sqlite.jobs import SUSPECT, count_finished
from gpuqueue.store.sqlite.rows import INLINE_BYTES, from_error, put_payload
from gpuqueue.store.sqlite.state_changes import update

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

_HELD = "id = ? AND lease = ? AND state = 'running'"
_HELD_AND_WANTED = f"{_HELD} AND cancel_requested = 0"
COMPLETE = update(transitions.COMPLETE, _HELD)
FINISH = {move.target: update(move, _HELD) for move in (transitions.DISCARD, transitions.STOP)}
RETRY_LATER = update(transitions.RETRY_LATER, _HELD_AND_WANTED)
RETRY_AT_ONCE = update(transitions.RETRY_AT_ONCE, _HELD_AND_WANTED)
SNOOZE = update(transitions.SNOOZE, _HELD_AND_WANTED)
SNOOZE_OVER = update(transitions.SNOOZE_OVER, _HELD_AND_WANTED)
GIVE_BACK = {
    "released": update(transitions.RELEASE, _HELD_AND_WANTED),
    "preempted": update(transitions.PREEMPT, _HELD_AND_WANTED),
}
CRASH = update(transitions.CRASH, _HELD_AND_WANTED)
CRASH_DISCARDED = update(transitions.CRASH_DISCARDED, _HELD)
RESCUE = {
    move.target: update(move, "id = ?")
    for move in (transitions.RESCUE, transitions.RESCUE_CANCELLED, transitions.RESCUE_DISCARDED)
}
# The backend that a job would wait for may have recovered while the attempt was still running: nothing would wake it then.
CAME_BACK = (
    "SELECT enqueued_at FROM jobs WHERE id = ? AND lease = ? AND EXISTS (SELECT 1 FROM events WHERE at >= jobs.started_at "
    "AND name = 'backend_recovered' AND json_extract(data, '$.backend') = ?)"
)
RESERVATIONS = (
    "SELECT id, lease, queue, demand_model, device, reserved_bytes, state = 'running', worker_id, task, started_at, "
    "preemptible, preempt_lease IS lease, preemptions, output_tokens, json_extract(arguments, '$.options.num_predict'), "
    "continues, first_output_at, unloaded_lease IS lease "
    "FROM jobs WHERE device IS NOT NULL"
)
NOTE_UNLOADED = (
    "UPDATE jobs SET unloaded_lease = lease, reserved_bytes = max(reserved_bytes, ?) "
    "WHERE id = ? AND lease = ? AND device IS NOT NULL AND state <> 'running'"
)
# An attempt that was to continue an earlier one's output, and writes its own, has started again: the next one would too.
NOTE_OUTPUT = (
    "UPDATE jobs SET output_tokens = ?, first_output_at = coalesce(first_output_at, ?), "
    "continues = continues AND NOT coalesce(? IS NULL AND (SELECT chunks.lease FROM chunks WHERE job_id = jobs.id "
    "ORDER BY seq LIMIT 1) < jobs.lease, 0) WHERE id = ? AND lease = ? AND state = 'running'"
)
PREEMPTED = (
    "SELECT device, started_at, first_output_at, continues AND EXISTS (SELECT 1 FROM chunks WHERE job_id = jobs.id), "
    "thrown, restarted FROM jobs LEFT JOIN devices ON name = device WHERE jobs.id = ? AND device IS NOT NULL"
)
PUT_LOST = (
    "INSERT INTO devices (name, thrown, restarted) VALUES (?, ?, ?) "
    "ON CONFLICT (name) DO UPDATE SET thrown = excluded.thrown, restarted = excluded.restarted"
)
# A job on a device keeps its demand class, and with it its order: it is a suspect while its last attempt that ended is a crash.
IS_SUSPECT = (
    "demand_class < 0 OR (device IS NOT NULL AND (SELECT outcome FROM attempts WHERE job_id = jobs.id "
    "AND outcome NOT IN ('released', 'preempted') ORDER BY lease DESC LIMIT 1) IS 'crashed')"
)
RUNNING_OF = (
    f"SELECT id, lease, queue, task, attempt, crashes, cancel_requested, device IS NULL, {IS_SUSPECT} FROM jobs "
    "WHERE state = 'running' AND worker_id = ?"
)


def finish(connection: sqlite3.Connection, outcomes: Sequence[Outcome], *, now_us: int) -> list[Lease]:
    """Write how attempts ended; returns the leases that were no longer held, for which nothing was changed."""
    late: list[Lease] = []
    counted: Counter[tuple[str, str]] = Counter()
    completed = [outcome for outcome in outcomes if isinstance(outcome, Completed)]
    rows = [_completed_row(outcome, now_us) for outcome in completed]
    if completed and connection.executemany(COMPLETE, rows).rowcount == len(completed):
        for outcome in completed:
            counted[outcome.lease.queue, "completed"] += 1
    else:
        # Some lease was lost: check which rows carry this exact completion.
        for outcome in completed:
            if connection.execute(
                "SELECT 1 FROM jobs WHERE id = ? AND lease = ? AND state = 'completed' AND finished_at = ?",
                (outcome.lease.job_id, outcome.lease.lease, now_us),
            ).fetchone():
                counted[outcome.lease.queue, "completed"] += 1
            else:
                late.append(outcome.lease)
    lost = {(lease.job_id, lease.lease) for lease in late}
    for outcome in completed:
        if len(outcome.result) > INLINE_BYTES and (outcome.lease.job_id, outcome.lease.lease) not in lost:
            put_payload(connection, outcome.lease.job_id, "result", outcome.result)
    for other in outcomes:
        if isinstance(other, Completed):
            continue
        if isinstance(other, Ended):
            state = _end(connection, other, now_us=now_us)
        elif isinstance(other, Crashed):
            state = _crash(connection, other, now_us=now_us)
        else:
            state = _postpone(connection, other, now_us=now_us)
        if state is None:
            late.append(other.lease)
        elif state in (State.CANCELLED, State.DISCARDED):
            counted[other.lease.queue, str(state)] += 1
    if counted:
        count_finished(connection, dict(counted))
    return late


def _completed_row(outcome: Completed, now_us: int) -> tuple[int, str | None, int, int]:
    inline = outcome.result if len(outcome.result) <= INLINE_BYTES else None
    return (now_us, inline, outcome.lease.job_id, outcome.lease.lease)


def _end(connection: sqlite3.Connection, outcome: Ended, *, now_us: int) -> State | None:
    lease = outcome.lease
    row = (now_us, from_error(outcome.error), lease.job_id, lease.lease)
    if connection.execute(FINISH[outcome.state], row).rowcount == 0:
        return None
    _note_attempt(connection, lease.job_id, lease.lease, lease.attempt, str(outcome.state), outcome.error, now_us=now_us)
    return outcome.state


def _cancel(connection: sqlite3.Connection, lease: Lease, *, now_us: int) -> State | None:
    """End a job that would otherwise continue, and was cancelled while it was running; None if the lease is lost."""
    cancelled = JobErrorRecord("cancelled", "cancelled while running")
    return _end(connection, Ended(lease, State.CANCELLED, cancelled), now_us=now_us)


def _crash(connection: sqlite3.Connection, outcome: Crashed, *, now_us: int) -> State | None:
    lease, error = outcome.lease, from_error(outcome.error)
    if outcome.state is State.DISCARDED:
        changed = connection.execute(CRASH_DISCARDED, (now_us, error, lease.job_id, lease.lease))
    else:
        changed = connection.execute(CRASH, (error, lease.job_id, lease.lease))
    if changed.rowcount == 0:
        return _cancel(connection, lease, now_us=now_us)
    _note_attempt(connection, lease.job_id, lease.lease, lease.attempt, "crashed", outcome.error, now_us=now_us)
    return outcome.state


def _postpone(connection: sqlite3.Connection, outcome: Postponed, *, now_us: int) -> State | None:
    lease = outcome.lease
    state, statement, values = _postponement(connection, outcome, now_us=now_us)
    if connection.execute(statement, (*values, lease.job_id, lease.lease)).rowcount == 0:
        return _cancel(connection, lease, now_us=now_us)
    _note_attempt(connection, lease.job_id, lease.lease, lease.attempt, outcome.outcome, outcome.error, now_us=now_us)
    if outcome.outcome == "preempted":
        _note_lost(connection, lease, now_us=now_us)
    return state


def _note_lost(connection: sqlite3.Connection, lease: Lease, *, now_us: int) -> None:
    """Note what a preemption costs: the attempt's work if its job starts again, else the time that it took to start."""
    row = connection.execute(PREEMPTED, (lease.job_id,)).fetchone()
    if row is None:
        return
    device, started_us, first_us, goes_on, thrown, restarted = row
    if not goes_on:
        thrown = _with_entry(thrown, THROWN_IN, now_us - started_us, now_us=now_us)
    elif first_us is not None:
        restarted = _with_entry(restarted, RESTARTED_IN, first_us - started_us, now_us=now_us)
    connection.execute(PUT_LOST, (device, thrown, restarted))


def _with_entry(text: str | None, kept_for: timedelta, lost_us: int, *, now_us: int) -> str:
    oldest_us = now_us - int(kept_for.total_seconds() * 1e6)
    entries = [entry for entry in json.loads(text or "[]") if oldest_us < entry[0] <= now_us]
    return json.dumps([*entries, [now_us, max(0, lost_us)]])


def _postponement(
    connection: sqlite3.Connection, outcome: Postponed, *, now_us: int
) -> tuple[State, str, tuple[int | str | None, ...]]:
    """Return the job's new state, the statement that sets it, and the statement's values."""
    if outcome.outcome in GIVE_BACK:
        # A job that was given back through no fault of its own keeps its place in the queue.
        return State.AVAILABLE, GIVE_BACK[outcome.outcome], ()
    lease, at_us, is_due = outcome.lease, outcome.at_us, outcome.at_us <= now_us
    error = None if outcome.error is None else from_error(outcome.error)
    if outcome.outcome == "retried":
        return (State.AVAILABLE, RETRY_AT_ONCE, (at_us, error)) if is_due else (State.RETRYABLE, RETRY_LATER, (at_us, error))
    if outcome.waiting_for is not None:
        back = connection.execute(CAME_BACK, (lease.job_id, lease.lease, outcome.waiting_for)).fetchone()
        if back is not None:
            at_us, is_due = back[0], True
    if is_due:
        return State.AVAILABLE, SNOOZE_OVER, (at_us, error)
    return State.RETRYABLE, SNOOZE, (at_us, error, outcome.waiting_for)


def _note_attempt(
    connection: sqlite3.Connection,
    job_id: int,
    lease: int,
    attempt: int,
    outcome: str,
    error: JobErrorRecord | None,
    *,
    now_us: int,
) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO attempts "
        "(job_id, lease, attempt, outcome, started_at, finished_at, worker_id, device, error, numbers) "
        "SELECT id, ?, ?, ?, started_at, ?, worker_id, device, ?, "
        "CASE WHEN output_tokens > 0 THEN json_object('output_tokens', output_tokens, 'model', demand_model) END "
        "FROM jobs WHERE id = ?",
        (lease, attempt, outcome, now_us, None if error is None else from_error(error), job_id),
    )


def note_unloaded(connection: sqlite3.Connection, job_id: int, lease: int, held_bytes: int) -> bool:
    """Note that the model of a job's ended attempt was unloaded, and what it held; returns False if the lease is lost."""
    return connection.execute(NOTE_UNLOADED, (held_bytes, job_id, lease)).rowcount == 1


def release_device(connection: sqlite3.Connection, job_id: int, lease: int) -> bool:
    """Release the device that a job's ended attempt had reserved, after its clean-up; returns False if the lease is lost."""
    return (
        connection.execute(
            "UPDATE jobs SET device = NULL, reserved_bytes = 0, "
            "demand_model = CASE WHEN demand_class = 0 THEN '' ELSE demand_model END "
            "WHERE id = ? AND lease = ? AND device IS NOT NULL AND state <> 'running'",
            (job_id, lease),
        ).rowcount
        == 1
    )


def report(connection: sqlite3.Connection, reports: Sequence[Report]) -> None:
    """Write the reports of running attempts; reports under a lost lease are dropped."""
    connection.executemany(
        "INSERT INTO chunks (job_id, seq, lease, content) "
        "SELECT id, coalesce((SELECT max(seq) FROM chunks WHERE job_id = jobs.id), 0) + 1, coalesce(?, lease), ? "
        "FROM jobs WHERE id = ? AND lease = ? AND state = 'running'",
        [(item.output_lease, item.text, item.job_id, item.lease) for item in reports if item.text],
    )
    connection.executemany(
        "INSERT INTO logs (job_id, seq, lease, at, message) "
        "SELECT id, coalesce((SELECT max(seq) FROM logs WHERE job_id = jobs.id), 0) + 1, lease, ?, ? "
        "FROM jobs WHERE id = ? AND lease = ? AND state = 'running'",
        [(at_us, message, item.job_id, item.lease) for item in reports for at_us, message in item.lines],
    )
    connection.executemany(
        "UPDATE jobs SET progress = ?, progress_note = ? WHERE id = ? AND lease = ? AND state = 'running'",
        [(*item.progress, item.job_id, item.lease) for item in reports if item.progress is not None],
    )
    connection.executemany(
        NOTE_OUTPUT,
        [
            (item.output_tokens, item.first_output_us, item.output_lease, item.job_id, item.lease)
            for item in reports
            if item.output_tokens is not None
        ],
    )


def abandoned_workers(connection: Statements) -> list[str]:
    """Return workers that no longer have a row but still hold running jobs or device reservations."""
    rows = connection.execute(
        "SELECT worker_id FROM jobs WHERE state = 'running' AND worker_id NOT IN (SELECT id FROM workers) "
        "UNION SELECT worker_id FROM jobs WHERE device IS NOT NULL AND worker_id NOT IN (SELECT id FROM workers)"
    )
    return [worker_id for (worker_id,) in rows]


def reservations(connection: Statements) -> list[Reservation]:
    """Return every device reservation, whether its attempt is running or waiting for its clean-up."""
    return [
        Reservation(
            job_id=id_,
            lease=lease,
            queue=queue,
            model=model,
            device=device,
            reserved_bytes=taken,
            running=bool(running),
            worker_id=worker_id,
            task=task,
            started_at=None if started_at is None else from_us(started_at),
            preemptible=bool(preemptible),
            preempt_requested=bool(asked),
            preemptions=preemptions,
            output_tokens=tokens,
            output_limit=limit if isinstance(limit, int) and limit > 0 else None,
            continues=bool(continues),
            first_output_at=None if first_output_at is None else from_us(first_output_at),
            unloaded=bool(unloaded),
        )
        for (
            id_, lease, queue, model, device, taken, running, worker_id, task, started_at,
            preemptible, asked, preemptions, tokens, limit, continues, first_output_at, unloaded,
        ) in connection.execute(RESERVATIONS).fetchall()
    ]  # fmt: skip


def request_preemption(connection: sqlite3.Connection, job_id: int, lease: int) -> bool:
    """Ask a running attempt to stop to free memory; returns False if it has ended or was already asked."""
    return (
        connection.execute(
            "UPDATE jobs SET preempt_lease = lease "
            "WHERE id = ? AND lease = ? AND state = 'running' AND preempt_lease IS NOT lease",
            (job_id, lease),
        ).rowcount
        == 1
    )


def rescue(
    connection: sqlite3.Connection,
    dead_worker: str,
    *,
    by_worker: str,
    executing: Collection[int] | None,
    proof: str,
    max_crashes: int,
    now_us: int,
) -> Rescue:
    """Take back everything a dead worker held, under new lease numbers.

    Running jobs become available, their attempts unspent. `executing` are the jobs that ran in the worker's own process when it
    died, None if that is not known: then all may have. Each of them becomes a suspect. One that was a suspect already ran
    there alone, so that it has crashed once more, and at `max_crashes` it is discarded.
    """
    connection.execute("DELETE FROM workers WHERE id = ?", (dead_worker,))
    discarded: Counter[tuple[str, str]] = Counter()
    jobs = []
    rows = connection.execute(RUNNING_OF, (dead_worker,)).fetchall()
    for job_id, lease, queue, task, attempt, crashes, cancel, is_plain, was_suspect in rows:
        blamed = executing is None or job_id in executing
        alone = was_suspect and (job_id in executing if executing is not None else len(rows) == 1)
        state, error = State.AVAILABLE, None
        if blamed:
            error = JobErrorRecord("crashed", f"worker {dead_worker} died ({proof})")
        if alone:
            crashes += 1
            state, error = crash_of(crashes, f"worker {dead_worker} died ({proof})", max_crashes=max_crashes)
        if cancel:
            state = State.CANCELLED
        if state in FINISHED:
            discarded[queue, str(state)] += 1
        _note_attempt(connection, job_id, lease, attempt, "crashed" if blamed else "released", error, now_us=now_us)
        ended_at = (now_us,) if state in FINISHED else ()
        place = () if state in FINISHED else (SUSPECT if blamed and is_plain else None,)
        values = (*ended_at, crashes, None if error is None else from_error(error), *place, job_id)
        connection.execute(RESCUE[state], values)
        record(
            connection,
            "lease_rescued",
            at_us=now_us,
            job_id=job_id,
            queue=queue,
            data={"worker": dead_worker, "by": by_worker, "proof": proof, "crashes": crashes},
        )
        jobs.append(Rescued(job_id, lease + 1, queue, task, state, crashes))
    count_finished(connection, dict(discarded))
    orphans = [item for item in reservations(connection) if item.worker_id == dead_worker]
    for item in orphans:
        # An attempt that had finished but was not cleaned up still has its old lease number: fence its clean-up too.
        connection.execute("UPDATE jobs SET worker_id = ?, lease = lease + 1 WHERE id = ?", (by_worker, item.job_id))
    taken = {item.job_id for item in orphans}
    mine = tuple(item for item in reservations(connection) if item.worker_id == by_worker and item.job_id in taken)
    return Rescue(tuple(jobs), mine)
