"""Claims jobs for a worker, deciding inside the write transaction and from rows alone.

Hooks propose (which queues are held, which device a job gets) and the claim decides: manual pauses, yielding,
concurrency, device slots, models on a device and its budget are checked again here, under the write lock.
"""

from __future__ import annotations

import heapq
import json
import sqlite3
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuqueue.domain import transitions
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.claim import MOST_SUSPECTS, Capacity, ClaimRules
from gpuqueue.domain.estimates import ONE_AT_ONCE, model_key
from gpuqueue.domain.job import Job, Lease, lease_of
from gpuqueue.domain.models import full_name
from gpuqueue.domain.outcomes import Outcome
from gpuqueue.domain.rates import level
from gpuqueue.domain.room import Share, lack
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.domain.units import from_us
from gpuqueue.store.sqlite.jobs import DEMAND_CLASS_BYTES, NEVER_FITS, SUSPECT, demand_class, ensure_queue, move_due
from gpuqueue.store.sqlite.outcomes import IS_SUSPECT, finish
from gpuqueue.store.sqlite.rows import JOB_COLUMNS, decode_arguments, get_payload, to_job
from gpuqueue.store.sqlite.state_changes import update

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

HEADS = (
    "SELECT id, queue, task, lease, attempt, max_attempts, arguments, timeout_s, priority, scheduled_at, NULL FROM jobs "
    "WHERE state = 'available' AND queue = ? AND demand_model = '' AND demand_class = 0 AND device IS NULL "
    "ORDER BY priority DESC, scheduled_at, id LIMIT ?"
)
SUSPECTS = (
    f"SELECT id, task FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = '' AND demand_class = {SUSPECT} "
    "AND device IS NULL ORDER BY priority DESC, scheduled_at, id LIMIT ?"
)
SUSPECT_JOB = (
    "SELECT id, queue, task, lease, attempt, max_attempts, arguments, timeout_s, priority, scheduled_at, crashes FROM jobs "
    f"WHERE id = ? AND state = 'available' AND demand_class = {SUSPECT} AND device IS NULL"
)
RUNNING_SUSPECTS = f"SELECT count(*) FROM jobs WHERE state = 'running' AND demand_class = {SUSPECT}"
IS_SUSPECT_NOW = f"SELECT {IS_SUSPECT} FROM jobs WHERE id = ?"
# A worker without a row was rescued: what it claimed now would wait for a second rescue.
_BY_WORKER = "id = ? AND EXISTS (SELECT 1 FROM workers WHERE workers.id = ?)"
TAKE = update(transitions.CLAIM, "id = ?")
TAKE_PLAIN = update(transitions.CLAIM, _BY_WORKER)
TAKE_DEVICE = update(transitions.PLACE, _BY_WORKER)
LOAD_MODEL = (
    "INSERT INTO devices (name, model, model_since) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
    "SET model = excluded.model, model_since = excluded.model_since"
)
PASS = "UPDATE jobs SET passed_at = ? WHERE id = ? AND state = 'available' AND passed_at IS NULL"
LAST_OUTCOME = "SELECT outcome FROM attempts WHERE job_id = ? ORDER BY lease DESC LIMIT 1"
RUNNING_COUNT = "SELECT count(*) FROM jobs WHERE state = 'running' AND queue = ?"
IS_RUNNING = "SELECT 1 FROM jobs WHERE state = 'running' AND queue = ? LIMIT 1"
IS_WAITING = "SELECT 1 FROM jobs WHERE state = 'available' AND queue = ? LIMIT 1"
# The (model, class) pair of a queue that follows a given one: the index is skipped through, never scanned. With a comparison of
# pairs, SQLite would visit every job of the given one.
NEXT_CLASS = (
    "SELECT * FROM (SELECT demand_model, demand_class FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = ? "
    "AND demand_class > ? ORDER BY demand_class LIMIT 1) UNION ALL "
    "SELECT * FROM (SELECT demand_model, demand_class FROM jobs WHERE state = 'available' AND queue = ? AND demand_model > ? "
    "ORDER BY demand_model, demand_class LIMIT 1) LIMIT 1"
)
CLASS_HEAD = (
    f"SELECT {JOB_COLUMNS} FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = ? AND demand_class = ? "
    "AND device IS NULL ORDER BY priority DESC, scheduled_at, id LIMIT 1"
)
OF_CLASS = "SELECT id FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = ? AND demand_class = ? LIMIT ?"
UNSIZED = (
    f"SELECT {JOB_COLUMNS} FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = '' AND demand_class = 0 "
    "ORDER BY priority DESC, scheduled_at, id LIMIT ?"
)
AS_PLACED = (
    f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ? AND state = 'available' AND device IS NULL "
    "AND demand_model = ? AND demand_bytes = ? AND demand_class > 0"
)
RESERVED = (
    "SELECT task, demand_model, reserved_bytes, state = 'running', unloaded_lease IS lease FROM jobs "
    "WHERE device IS NOT NULL AND device = ?"
)
RUNS_ALONE = "SELECT 1 FROM estimates WHERE kind = ? AND key = ?"
PAUSED = "SELECT name FROM queues WHERE paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > ?)"


def admits(connection: Statements, queue: QueueSettings, rules: ClaimRules, paused: Collection[str], *, now_us: int) -> bool:
    """Return whether the queue may start a job: not held, not paused, and no queue that it yields to has work."""
    if queue.name in rules.held or queue.name in paused:
        return False
    return not any(_has_work(connection, name, rules, paused, now_us=now_us) for name in queue.yields_to)


def _has_work(connection: Statements, name: str, rules: ClaimRules, paused: Collection[str], *, now_us: int) -> bool:
    if connection.execute(IS_RUNNING, (name,)).fetchone():
        return True
    settings = rules.queues.get(name) or QueueSettings(name)
    if not admits(connection, settings, rules, paused, now_us=now_us):  # a job that cannot start does not count as work
        return False
    # A suspect without a device does not count: it may be of a task that no worker knows, and would hold others for ever.
    if settings.gpu:
        waits = any(size != SUSPECT for _, size in classes(connection, name, largest_bytes=rules.largest_bytes))
    else:
        waits = connection.execute(NEXT_CLASS, (name, "", SUSPECT, name, "")).fetchone() is not None
    return waits and is_served(connection, name, now_us=now_us)


def has_available(connection: Statements, queue: str) -> bool:
    """Return whether a job of the queue is available."""
    return connection.execute(IS_WAITING, (queue,)).fetchone() is not None


def suspects(connection: Statements, queue: str, *, limit: int) -> list[tuple[int, str]]:
    """Return the first available suspects of a queue without a device: [(id, task)], in the order of a claim."""
    return list(connection.execute(SUSPECTS, (queue, limit)))


def paused_queues(connection: Statements, *, now_us: int) -> set[str]:
    return {row[0] for row in connection.execute(PAUSED, (now_us,))}


def is_served(connection: Statements, queue: str, *, now_us: int) -> bool:
    """Return whether a worker with an unexpired lease serves the queue."""
    rows = connection.execute("SELECT queues FROM workers WHERE expires_at > ?", (now_us,))
    return any(names is None or queue in json.loads(names) for (names,) in rows)


def classes(connection: Statements, queue: str, *, largest_bytes: int) -> Iterable[tuple[str, int]]:
    """Yield the (model, class) pairs of a queue's available jobs that a device with this much room could take.

    A class that is too large is skipped in one step, together with all larger ones of its model. The pair ("", 0) stands for
    jobs with a demand that is not known yet.
    """
    largest_class = demand_class(largest_bytes)
    model, size = "", SUSPECT - 1
    while (row := connection.execute(NEXT_CLASS, (queue, model, size, queue, model)).fetchone()) is not None:
        model, size = row
        if size <= largest_class:
            yield model, size
        else:
            size = NEVER_FITS


def sized(connection: Statements, model: str | None = None, *, limit: int | None = None, suspects: bool = False) -> list[int]:
    """Return the ids of available jobs with a known demand, of one model or of all, and of suspects if asked; at most `limit`."""
    found: list[int] = []
    for (queue,) in connection.execute("SELECT name FROM queues").fetchall():
        for of_model, size in classes(connection, queue, largest_bytes=NEVER_FITS * DEMAND_CLASS_BYTES):
            if (size > 0 or (suspects and size)) and model in (None, of_model):
                left = -1 if limit is None else limit - len(found)
                found += [row[0] for row in connection.execute(OF_CLASS, (queue, of_model, size, left))]
    return found


def demand_classes(connection: Statements, queue: str, *, largest_bytes: int) -> list[tuple[str, int]]:
    """Return what `classes` yields as a list, for use outside this connection's block."""
    return list(classes(connection, queue, largest_bytes=largest_bytes))


def candidates(connection: Statements, queue: str, *, room_bytes: int) -> list[Job]:
    """Return the first job of each demand class of a GPU queue that fits into `room_bytes`."""
    found = []
    for model, size in classes(connection, queue, largest_bytes=room_bytes):
        row = None if size == 0 else connection.execute(CLASS_HEAD, (queue, model, size)).fetchone()
        if row is not None:
            job = to_job(connection, row)
            if job.demand_bytes <= room_bytes:
                found.append(job)
    return found


def unsized(connection: Statements, queue: str, *, limit: int) -> list[Job]:
    """Return available jobs of a GPU queue that have no known demand yet."""
    return [to_job(connection, row) for row in connection.execute(UNSIZED, (queue, limit)).fetchall()]


def claim(
    connection: sqlite3.Connection,
    *,
    worker_id: str,
    queues: Sequence[QueueSettings],
    rules: ClaimRules,
    capacity: Capacity,
    now_us: int,
) -> list[Claimed]:
    """Claim available jobs of queues without a GPU for one worker, as many as it has room for.

    Eligible: due, in `queues`, and within each queue's pause, yielding and concurrency; nothing for a worker without a row. A
    queue's jobs are taken in order: if the next one needs a thread or a coroutine and none is free, those behind it wait too.
    Order: the suspects that `capacity` names, then priority descending, then scheduled_at, then id, across all the queues.
    Atomic: one transaction; each claim takes the job's next lease number.
    Returns: no more leases than `capacity` has threads and coroutines for.
    """
    move_due(connection, now_us=now_us)
    paused = paused_queues(connection, now_us=now_us)
    free_threads, free_coroutines = capacity.threads, capacity.coroutines
    most = free_threads + free_coroutines
    limits: dict[str, int] = {}
    stuck: set[str] = set()  # queues with a next job that finds no free thread or coroutine
    for queue in queues:
        limit = most
        if queue.concurrency is not None:
            limit = min(most, queue.concurrency - connection.execute(RUNNING_COUNT, (queue.name,)).fetchone()[0])
        if queue.rate is not None and limit > 0:
            limit = min(limit, int(rate_level(connection, queue, now_us=now_us)))
        if limit > 0 and admits(connection, queue, rules, paused, now_us=now_us):
            limits[queue.name] = limit
    taken = _suspects(connection, capacity, limits) if capacity.suspects else []
    free_threads -= len(taken)
    waiting = [_heads(connection, name, limit, stuck) for name, limit in limits.items()]
    for row in waiting[0] if len(waiting) == 1 else heapq.merge(*waiting, key=_rank):
        is_asynchronous = row[2] in capacity.asynchronous
        if not (free_coroutines if is_asynchronous else free_threads):
            stuck.add(row[1])
            continue
        taken.append(row)
        if is_asynchronous:
            free_coroutines -= 1
        else:
            free_threads -= 1
        if not (free_threads or free_coroutines):
            break
    for heads in waiting:
        heads.close()  # an open read would outlive the transaction
    # With the first job it is decided whether the worker may claim any.
    if not taken or not connection.execute(TAKE_PLAIN, (worker_id, now_us, taken[0][0], worker_id)).rowcount:
        return []
    if len(taken) > 1:
        connection.executemany(TAKE, [(worker_id, now_us, row[0]) for row in taken[1:]])
    for queue in queues:
        if queue.rate is not None:
            count = sum(row[1] == queue.name and not (row[3] and _is_given_back(connection, row[0])) for row in taken)
            _spend_rate(connection, queue, count, now_us=now_us)
    started_at = from_us(now_us)
    return [
        _new(
            Claimed,
            (
                id_,
                lease + 1,
                queue,
                task,
                attempt + 1,
                max_attempts,
                get_payload(connection, id_, "arguments") if arguments is None else arguments,
                timeout_s,
                started_at,
                crashes,
            ),
        )
        for id_, queue, task, lease, attempt, max_attempts, arguments, timeout_s, _priority, _scheduled_at, crashes in taken
    ]


class Claimed(NamedTuple):
    """A lease with its arguments as stored: they are decoded after the transaction, which other processes wait for."""

    job_id: int
    lease: int
    queue: str
    task: str
    attempt: int
    max_attempts: int
    arguments: str | None
    timeout_s: float | None
    started_at: datetime
    crashes: int | None

    def decoded(self) -> Lease:
        """Return the lease; arguments that cannot be decoded are its `arguments_error`."""
        job_id, lease, queue, task, attempt, max_attempts, text, timeout_s, started_at, crashes = self
        arguments, error = decode_arguments(text)
        return Lease(
            job_id,
            lease,
            queue,
            task,
            attempt,
            max_attempts,
            arguments,
            timeout_s,
            started_at,
            arguments_error=error,
            crashes=crashes,
        )


# Builds the named tuple like its constructor, in half the time: a worker may claim thousands a second.
_new: Callable[[type[Claimed], tuple[Any, ...]], Claimed] = tuple.__new__


def _suspects(connection: sqlite3.Connection, capacity: Capacity, limits: dict[str, int]) -> list[tuple[Any, ...]]:
    """Return the rows of the suspects to claim, and take them off their queues' limits."""
    most = min(capacity.threads, MOST_SUSPECTS - connection.execute(RUNNING_SUSPECTS).fetchone()[0])
    found: list[tuple[Any, ...]] = []
    for job_id in capacity.suspects:
        if len(found) >= most:
            break
        row = connection.execute(SUSPECT_JOB, (job_id,)).fetchone()
        if row is not None and limits.get(row[1], 0) > 0:
            limits[row[1]] -= 1
            found.append(row)
    return found


def rate_level(connection: Statements, queue: QueueSettings, *, now_us: int) -> float:
    """Return how many jobs the queue's rate lets start now; infinite without a rate."""
    if queue.rate is None:
        return float("inf")
    row = connection.execute("SELECT rate_level, rate_at FROM queues WHERE name = ?", (queue.name,)).fetchone()
    before, at = (None, None) if row is None else row
    return level(queue.rate, before, 0.0 if at is None else (now_us - at) / 1e6)


def _spend_rate(connection: sqlite3.Connection, queue: QueueSettings, count: int, *, now_us: int) -> None:
    if count and queue.rate is not None:
        left = rate_level(connection, queue, now_us=now_us) - count
        ensure_queue(connection, queue.name)
        connection.execute("UPDATE queues SET rate_level = ?, rate_at = ? WHERE name = ?", (left, now_us, queue.name))


def _is_given_back(connection: sqlite3.Connection, job_id: int) -> bool:
    """Whether the job's last attempt ended without being spent, after it had spent the queue's rate."""
    row = connection.execute(LAST_OUTCOME, (job_id,)).fetchone()
    return row is not None and row[0] in ("preempted", "released")


def _heads(connection: sqlite3.Connection, queue: str, limit: int, stuck: set[str]) -> Generator[tuple[Any, ...]]:
    """Yield a queue's first jobs in order, until it is stuck."""
    with closing(connection.execute(HEADS, (queue, limit))) as cursor:
        for row in cursor:
            if queue in stuck:
                return
            yield row


def _rank(row: tuple[Any, ...]) -> tuple[int, int, int]:
    return (-row[8], row[9], row[0])


def claim_placed(
    connection: sqlite3.Connection,
    candidate: Job,
    placement: Placement,
    *,
    worker_id: str,
    queue: QueueSettings,
    device: DeviceSettings,
    rules: ClaimRules,
    preemptible: bool = False,
    continues: bool = False,
    passed: int | None = None,
    now_us: int,
) -> Lease | None:
    """Claim one job for a device, reserving the memory.

    `preemptible`: its attempt can be preempted; `continues`: a later one then continues its output; `passed`: the job that it
    starts before, because its model is loaded.

    Eligible: still available, with the demand that the placement was decided for, within its queue's pause, yielding and
    concurrency, and within the device's slots, models and budget and its model's parallel requests, counting every reservation
    without a verified clean-up; nothing for a worker without a row.
    Returns: the lease, or None if any of this no longer holds.
    """
    move_due(connection, now_us=now_us)
    row = connection.execute(AS_PLACED, (candidate.id, candidate.model, candidate.demand_bytes)).fetchone()
    if row is None or not admits(connection, queue, rules, paused_queues(connection, now_us=now_us), now_us=now_us):
        return None
    job = to_job(connection, row, candidate)
    if queue.concurrency is not None and connection.execute(RUNNING_COUNT, (queue.name,)).fetchone()[0] >= queue.concurrency:
        return None
    reserved = [Share(*row) for row in connection.execute(RESERVED, (device.name,))]
    parallel = rules.parallel.get(device.name, device.slots)
    if parallel > 1 and reserved and connection.execute(RUNS_ALONE, (ONE_AT_ONCE, model_key(job.model))).fetchone():
        parallel = 1
    share = Share(job.task, job.model, placement.reserved_bytes)
    if lack(device, share, reserved, parallel=parallel) or rate_level(connection, queue, now_us=now_us) < 1:
        return None
    place = (device.name, placement.reserved_bytes, int(preemptible), int(continues))
    if connection.execute(TAKE_DEVICE, (worker_id, now_us, *place, candidate.id, worker_id)).rowcount == 0:
        return None
    if passed is not None:
        connection.execute(PASS, (now_us, passed))
    if queue.rate is not None and not _is_given_back(connection, candidate.id):
        _spend_rate(connection, queue, 1, now_us=now_us)
    (is_suspect,) = connection.execute(IS_SUSPECT_NOW, (candidate.id,)).fetchone()
    if job.model and full_name(job.model) not in _loaded(connection, device.name, reserved):
        connection.execute(LOAD_MODEL, (device.name, job.model, now_us))
    return lease_of(job, placement, is_suspect=bool(is_suspect), now_us=now_us)


def _loaded(connection: Statements, device: str, reserved: Iterable[Share]) -> set[str]:
    """Return the models on a device: those of its reservations, and those last seen there."""
    row = connection.execute("SELECT residents FROM devices WHERE name = ?", (device,)).fetchone()
    seen = json.loads(row[0]) if row is not None and row[0] else ()
    return {full_name(item.model) for item in reserved if item.model and not item.unloaded} | {
        full_name(item["model"]) for item in seen
    }


def finish_and_claim(
    connection: sqlite3.Connection,
    ended: Sequence[Outcome],
    *,
    worker_id: str,
    queues: Sequence[QueueSettings],
    rules: ClaimRules,
    capacity: Capacity,
    now_us: int,
) -> tuple[list[Lease], list[Claimed]]:
    """Write how attempts ended and claim jobs of queues without a GPU; returns (late leases, claimed jobs)."""
    late = finish(connection, ended, now_us=now_us) if ended else []
    if not queues or not (capacity.threads or capacity.coroutines):
        return late, []
    return late, claim(connection, worker_id=worker_id, queues=queues, rules=rules, capacity=capacity, now_us=now_us)


def claim_job(connection: sqlite3.Connection, job: Job, *, worker_id: str, now_us: int) -> Lease | None:
    """Claim one job if it has not changed since it was read, regardless of limits and workers; None if it has."""
    row = connection.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job.id,)).fetchone()
    if row is None or to_job(connection, row, job) != job:
        return None
    connection.execute(TAKE, (worker_id, now_us, job.id))
    return lease_of(job, now_us=now_us)
