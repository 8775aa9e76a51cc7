"""Reads jobs, counts, timelines, and the rows of the view; changes nothing.

Every function takes a connection; those that read several tables need it inside one read transaction.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import DeviceProcess, Reading, Resident
from gpuqueue.domain.errors import UnknownJob
from gpuqueue.domain.explanation import FAR, RunningJob, Work
from gpuqueue.domain.job import WAITING, Job, JobStatus, LogLine, PartialOutput, State
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.domain.view import Backend, PartInfo, Pause, Sighting, WorkerInfo, WorkerRow
from gpuqueue.store.sqlite.claims import RUNNING_COUNT, classes
from gpuqueue.store.sqlite.jobs import SUSPECT, demand_class
from gpuqueue.store.sqlite.rows import JOB_COLUMNS, get_payload, to_error, to_job

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

FEW = 5_000  # this many jobs are sorted quickly
MANY = 100  # waiting jobs are counted up to this number where only the order of magnitude matters
RESULT = "SELECT state, result, error, expires_at, queue, lease FROM jobs WHERE id = ?"


def get_job(connection: Statements, job_id: int) -> Job:
    """Return one job. Raises: UnknownJob."""
    row = connection.execute(f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise UnknownJob(job_id)
    return to_job(connection, row)


def list_jobs(
    connection: Statements,
    *,
    queue: str | None,
    state: State | None,
    limit: int,
    after: int | None = None,
    before: int | None = None,
) -> list[Job]:
    """Return jobs, newest first: those after the id `after`, or the ones just before the id `before`."""
    selected, values = newest(connection, queue=queue, state=state, after=after, before=before)
    rows = connection.execute(f"SELECT {JOB_COLUMNS} FROM jobs {selected} LIMIT ?", (*values, limit)).fetchall()
    return [to_job(connection, row) for row in (rows if before is None else reversed(rows))]


def newest(
    connection: Statements, *, queue: str | None, state: State | None, after: int | None, before: int | None = None
) -> tuple[str, list[Any]]:
    """Build the WHERE and ORDER BY of a list of jobs, newest first (reversed with `before`), and their values."""
    conditions = [f"state = '{State(state)}'"] if state is not None else []
    for together in (("cancelled", "discarded"), ("scheduled", "retryable")):
        if state in together:
            conditions.append(f"state IN {together}")  # as the index of these states spells it
    values: list[Any] = []
    if queue is not None:
        conditions.append("queue = ?")
        values.append(queue)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "id"
    if state in (*WAITING, State.RUNNING):
        # A few old ones would be searched for among all jobs; the state's own index finds them directly, in another order.
        counted = f"SELECT count(*) FROM (SELECT 1 FROM jobs {where} LIMIT ?)"
        if connection.execute(counted, (*values, FEW + 1)).fetchone()[0] <= FEW:
            order = "+id"
    for compared, job_id in (("<", after), (">", before)):
        if job_id is not None:
            where = f"{where} AND {order} {compared} ?" if where else f"WHERE {order} {compared} ?"
            values.append(job_id)
    return f"{where} ORDER BY {order} {'DESC' if before is None else 'ASC'}", values


def get_status(connection: Statements, job_id: int) -> JobStatus:
    """Return a job's status, with its result if it has one. Raises: UnknownJob."""
    row = connection.execute(RESULT, (job_id,)).fetchone()
    if row is None:
        raise UnknownJob(job_id)
    state, result, error, expires_at, queue, lease = row
    if state == "completed" and result is None:
        result = get_payload(connection, job_id, "result")
    return JobStatus(State(state), result, to_error(error), expires_at, queue, lease)


def chunks_after(connection: Statements, job_id: int, seq: int) -> list[tuple[int, int, str]]:
    """Return a job's output after a sequence number: [(seq, lease, text)]."""
    statement = "SELECT seq, lease, content FROM chunks WHERE job_id = ? AND seq > ? ORDER BY seq"
    return list(connection.execute(statement, (job_id, seq)))


def partial_output(connection: Statements, job_id: int) -> PartialOutput | None:
    """Return the output of a job's latest attempt if it was interrupted through no fault of its own, else None."""
    row = connection.execute("SELECT outcome FROM attempts WHERE job_id = ? ORDER BY lease DESC LIMIT 1", (job_id,)).fetchone()
    if row is None or row[0] not in ("preempted", "released"):
        return None
    (lease,) = connection.execute("SELECT max(lease) FROM chunks WHERE job_id = ?", (job_id,)).fetchone()
    if lease is None:
        return None
    texts = connection.execute("SELECT content FROM chunks WHERE job_id = ? AND lease = ? ORDER BY seq", (job_id, lease))
    text = "".join(content for (content,) in texts)
    # Of a continued output each attempt's count has those before it.
    counted = connection.execute(
        "SELECT json_extract(numbers, '$.output_tokens'), coalesce(json_extract(numbers, '$.model'), '') FROM attempts "
        "WHERE job_id = ? AND lease >= ? AND numbers IS NOT NULL ORDER BY lease DESC LIMIT 1",
        (job_id, lease),
    ).fetchone()
    return PartialOutput(lease, text, *(counted or (0, "")))


def logs_after(connection: Statements, job_id: int, seq: int) -> list[LogLine]:
    """Return a job's log lines after a sequence number."""
    rows = connection.execute("SELECT seq, lease, at, message FROM logs WHERE job_id = ? AND seq > ? ORDER BY seq", (job_id, seq))
    return [LogLine(number, lease, from_us(at), message) for number, lease, at, message in rows]


def counts(connection: Statements) -> dict[str, dict[str, int]]:
    """Count jobs: {queue: {state: number}}, without zeros; finished ones while they are stored."""
    found: dict[str, dict[str, int]] = {name: {} for (name,) in connection.execute("SELECT name FROM queues ORDER BY name")}
    statements = (
        "SELECT queue, 'available', count(*) FROM jobs WHERE state = 'available' GROUP BY queue",
        "SELECT queue, state, count(*) FROM jobs WHERE state IN ('scheduled', 'retryable') GROUP BY queue, state",
        "SELECT queue, 'running', count(*) FROM jobs WHERE state = 'running' GROUP BY queue",
        "SELECT queue, state, count FROM counters WHERE count > 0",
    )
    for statement in statements:
        for queue, state, count in connection.execute(statement):
            found.setdefault(queue, {})[state] = count
    return found


def timeline(connection: Statements, job_id: int) -> list[dict[str, Any]]:
    """Return a job's interrupted attempts, oldest first.

    Each is a dict with attempt, lease, outcome, started_at, finished_at, worker, device and error.
    """
    rows = connection.execute(
        "SELECT attempt, lease, outcome, started_at, finished_at, worker_id, device, error FROM attempts "
        "WHERE job_id = ? ORDER BY lease",
        (job_id,),
    )
    return [
        {
            "attempt": attempt,
            "lease": lease,
            "outcome": outcome,
            "started_at": None if started_at is None else from_us(started_at),
            "finished_at": from_us(finished_at),
            "worker": worker,
            "device": device,
            "error": to_error(error),
        }
        for attempt, lease, outcome, started_at, finished_at, worker, device, error in rows
    ]


def rate_levels(connection: Statements) -> dict[str, tuple[float, datetime]]:
    """Return how many jobs each queue's rate let start at a given time: {queue: (level, time)}."""
    rows = connection.execute("SELECT name, rate_level, rate_at FROM queues WHERE rate_at IS NOT NULL")
    return {name: (level, from_us(at)) for name, level, at in rows}


def queue_names(connection: Statements) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM queues")}


def configuration(connection: Statements) -> Mapping[str, Any] | None:
    """Return the settings that the workers agreed on, or None before the first worker."""
    row = connection.execute("SELECT settings FROM configuration WHERE id = 1").fetchone()
    if row is None:
        return None
    settings: Mapping[str, Any] = json.loads(row[0])
    return settings


def worker_rows(connection: Statements, *, now_us: int) -> list[WorkerRow]:
    """Return the workers; `alive` means only that the lease has not expired."""
    rows = connection.execute(
        "SELECT id, host, pid, queues, started_at, expires_at, digest, runtime_dir, holds, parts, lease_us FROM workers "
        "ORDER BY started_at, id"
    )
    return [
        WorkerRow(
            WorkerInfo(
                id=id_,
                host=host,
                pid=pid,
                queues=None if queues is None else tuple(json.loads(queues)),
                started_at=from_us(started_at),
                expires_at=from_us(expires_at),
                digest=digest,
                alive=expires_at > now_us,
                holds=_published(holds),
                parts=tuple(PartInfo(**part) for part in json.loads(parts or "[]")),
            ),
            runtime_dir,
            lease_us / 1e6,
        )
        for id_, host, pid, queues, started_at, expires_at, digest, runtime_dir, holds, parts, lease_us in rows.fetchall()
    ]


def _published(text: str | None) -> dict[str, tuple[Hold, ...]]:
    return {queue: tuple(map(_hold, holds)) for queue, holds in json.loads(text or "{}").items()}


def _hold(told: Mapping[str, Any] | list[Any]) -> Hold:
    if isinstance(told, list):  # by a worker of the version before
        told = dict(zip(("reason", "detail", "until", "plugin"), told, strict=True))
    until = told.get("until")
    known = {name: told[name] for name in ("refuse", "plugin", "ends_with_jobs", "advice", "source") if name in told}
    return Hold(told["reason"], told["detail"], None if until is None else from_us(until), **known)


def pauses(connection: Statements, *, now_us: int) -> dict[str, Pause]:
    """Return the manual pauses in force: {queue: pause}."""
    rows = connection.execute(
        "SELECT name, paused_by, pause_reason, paused_at, paused_until FROM queues "
        "WHERE paused_at IS NOT NULL AND (paused_until IS NULL OR paused_until > ?)",
        (now_us,),
    )
    return {
        name: Pause(by or "", reason or "", from_us(at), None if until is None else from_us(until))
        for name, by, reason, at, until in rows
    }


def noted_reasons(connection: Statements) -> dict[str, tuple[str, ...]]:
    """Return the reasons that a worker noted when it last saw a queue held: {queue: reasons}."""
    rows = connection.execute("SELECT name, holds FROM queues WHERE holds IS NOT NULL AND holds != '[]'")
    return {name: tuple(json.loads(reasons)) for name, reasons in rows}


def backends(connection: Statements) -> dict[str, Backend]:
    """Return the state of each backend that was ever contacted; the caller must add its url."""
    rows = connection.execute("SELECT name, available, failures, since, retry_at, checked_at, error, models FROM backends")
    return {
        name: Backend(
            name=name,
            url="",
            available=bool(available),
            failures=failures,
            since=None if since is None else from_us(since),
            retry_at=None if retry_at is None else from_us(retry_at),
            checked_at=None if checked_at is None else from_us(checked_at),
            error=error or "",
            models=None if models is None else json.loads(models),
        )
        for name, available, failures, since, retry_at, checked_at, error, models in rows
    }


def device_sightings(connection: Statements) -> dict[str, Sighting]:
    """Return the last known state of each device: {device: sighting}."""
    found = {}
    rows = connection.execute("SELECT name, reading, residents, model, model_since, thrown, restarted FROM devices")
    for name, reading, residents, model, since, thrown, restarted in rows:
        values = json.loads(reading) if reading else None
        found[name] = Sighting(
            None if values is None else _reading(values),
            tuple(Resident(**resident) for resident in json.loads(residents or "[]")),
            model or "",
            None if since is None else from_us(since),
            *(tuple((from_us(at), lost_us / 1e6) for at, lost_us in json.loads(text or "[]")) for text in (thrown, restarted)),
        )
    return found


def _reading(values: Mapping[str, Any]) -> Reading:
    processes = values.get("processes")
    return Reading(
        **{
            **values,
            "at": from_us(values["at"]),
            "processes": None if processes is None else tuple(DeviceProcess(**process) for process in processes),
        }
    )


def queue_load(connection: Statements, queue: QueueSettings, *, largest_bytes: int) -> tuple[int, int]:
    """Return (running, waiting) for one queue; waiting counts available jobs that some device could take, up to MANY.

    Suspects without a device are not counted, as no job yields to them.
    """
    running = connection.execute(RUNNING_COUNT, (queue.name,)).fetchone()[0]
    found: Iterable[tuple[str, int]] = [("", 0)]
    if queue.gpu:
        found = classes(connection, queue.name, largest_bytes=largest_bytes)
    waiting = 0
    for model, size in found:
        if size == SUSPECT:
            continue
        waiting += connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'available' AND queue = ? AND demand_model = ? "
            "AND demand_class = ? LIMIT ?)",
            (queue.name, model, size, MANY - waiting),
        ).fetchone()[0]
        if waiting >= MANY:
            break
    return running, waiting


# In the order of the claim index: higher priorities, then earlier jobs of the same priority.
_OF_CLASS = "state = 'available' AND queue = ? AND demand_model = ? AND demand_class = ?"
FIRST_AHEAD = f"SELECT task, output_tokens > 0 FROM jobs WHERE {_OF_CLASS} AND priority > ? LIMIT ?"
EARLIER_AHEAD = (
    f"SELECT task, output_tokens > 0 FROM jobs WHERE {_OF_CLASS} AND priority = ? AND (scheduled_at, id) < (?, ?) LIMIT ?"
)
SIZE_OF_CLASS = f"SELECT min(task), count(*) FROM (SELECT task FROM jobs WHERE {_OF_CLASS} LIMIT ?)"
LAST_WAITING = (
    f"SELECT priority, scheduled_at, id FROM jobs WHERE {_OF_CLASS} ORDER BY priority, scheduled_at DESC, id DESC LIMIT 1"
)


def work_ahead(connection: Statements, queue: str, before: Job | None, *, largest_bytes: int) -> list[Work]:
    """Return a queue's available jobs ahead of a job of this or another queue, or all of them; at most FAR jobs.

    Jobs that fit no device are left out. Where jobs need several models, those behind it are counted too.
    """
    found: Counter[tuple[str, str]] = Counter()
    begun: Counter[tuple[str, str]] = Counter()
    behind: Counter[str] = Counter()
    several = list(classes(connection, queue, largest_bytes=largest_bytes))
    for model, size in several:
        if before is None:
            asked: list[tuple[str, tuple[Any, ...]]] = [(FIRST_AHEAD, (-sys.maxsize,))]
        else:
            earlier = (before.priority, to_us(before.scheduled_at), before.id)
            asked = [(FIRST_AHEAD, (before.priority,)), (EARLIER_AHEAD, earlier)]
        others_count = found.total()
        for statement, values in asked:
            for task, has_output in connection.execute(statement, (queue, model, size, *values, FAR - found.total())):
                found[task, model] += 1
                begun[task, model] += has_output or 0
        if before is not None and len(several) > 1:
            task, count = connection.execute(SIZE_OF_CLASS, (queue, model, size, FAR)).fetchone()
            found[task, model] += 0
            is_own = (before.queue, before.model) == (queue, model) and size == demand_class(before.demand_bytes)
            behind[model] += count - (found.total() - others_count) - is_own
    return [Work(queue, task, model, count, behind.pop(model, 0), begun[task, model]) for (task, model), count in found.items()]


def last_waiting(connection: Statements, queue: str, *, largest_bytes: int) -> Job | None:
    """Return the last available job of a queue that fits a device, None if there is none."""
    last = [
        connection.execute(LAST_WAITING, (queue, model, size)).fetchone()
        for model, size in classes(connection, queue, largest_bytes=largest_bytes)
    ]
    found = max(((-priority, at, job_id) for priority, at, job_id in filter(None, last)), default=None)
    return None if found is None else get_job(connection, found[2])


def running_jobs(connection: Statements, queue: str) -> list[RunningJob]:
    """Return running jobs of a queue, at most MANY."""
    rows = connection.execute(
        "SELECT id, task, started_at FROM jobs WHERE state = 'running' AND queue = ? LIMIT ?", (queue, MANY)
    )
    return [RunningJob(job_id, task, None if at is None else from_us(at), queue) for job_id, task, at in rows]


def discarded_ids(connection: Statements, queue: str | None) -> list[int]:
    """Return the ids of the discarded jobs of one queue, or of all, oldest first."""
    # As the index `jobs_unsuccessful` spells it.
    statement = "SELECT id FROM jobs WHERE state = 'discarded' AND state IN ('cancelled', 'discarded')"
    if queue is None:
        return [row[0] for row in connection.execute(f"{statement} ORDER BY id")]
    return [row[0] for row in connection.execute(f"{statement} AND queue = ? ORDER BY id", (queue,))]


def unfinished_ids(connection: Statements, queue: str) -> list[int]:
    """Return the ids of a queue's running and waiting jobs, running ones first; needs one read transaction."""
    states = ("state = 'running'", "state = 'available'", "state IN ('scheduled', 'retryable')")
    return [
        row[0] for state in states for row in connection.execute(f"SELECT id FROM jobs WHERE {state} AND queue = ?", (queue,))
    ]


def prunable_count(connection: Statements, state: State, *, before_us: int) -> int:
    """Count the jobs in a finished state that finished before a given time."""
    found: int = connection.execute(
        "SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL AND finished_at < ? AND state = ?", (before_us, str(state))
    ).fetchone()[0]
    return found


def stop_requests(connection: Statements, worker_id: str) -> list[tuple[int, int, bool]]:
    """Return the jobs that a worker must stop, as (job, lease, whether cancelled); the others are preempted."""
    rows = connection.execute(
        "SELECT id, lease, cancel_requested FROM jobs WHERE state = 'running' AND worker_id = ? "
        "AND (cancel_requested = 1 OR preempt_lease = lease)",
        (worker_id,),
    )
    return [(job_id, lease, bool(cancelled)) for job_id, lease, cancelled in rows]


def next_due_us(connection: Statements) -> int | None:
    """Return when the next scheduled, retryable or expiring job is due."""
    row = connection.execute("SELECT min(scheduled_at) FROM jobs WHERE state IN ('scheduled', 'retryable')").fetchone()
    expiring = connection.execute(
        "SELECT min(expires_at) FROM jobs WHERE expires_at IS NOT NULL AND finished_at IS NULL AND state <> 'running'"
    ).fetchone()
    times = [value for (value,) in (row, expiring) if value is not None]
    return min(times) if times else None


def newest_enqueued_us(connection: Statements) -> int | None:
    """Return the latest enqueue time among the newest jobs, of any process."""
    statement = "SELECT max(enqueued_at) FROM (SELECT enqueued_at FROM jobs ORDER BY id DESC LIMIT 10)"
    found: int | None = connection.execute(statement).fetchone()[0]
    return found


def headlines(connection: Statements, *, limit: int) -> list[tuple[int, State, str, str]]:
    """Return the newest jobs in brief: [(id, state, queue, task)]."""
    rows = connection.execute("SELECT id, state, queue, task FROM jobs ORDER BY id DESC LIMIT ?", (limit,))
    return [(job_id, State(state), queue, task) for job_id, state, queue, task in rows]
