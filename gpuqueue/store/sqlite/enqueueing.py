"""Inserts new jobs over a given cursor: the writer's own, or that of a caller's transaction.

While a follower reads the events, a trigger writes the event for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import Extras, NewJob
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.jobs import ensure_queue
from gpuqueue.store.sqlite.rows import INLINE_BYTES, PUT_PAYLOAD

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements

_COLUMNS = (
    "queue", "task", "state", "priority", "enqueued_at", "scheduled_at", "expires_at", "max_attempts", "timeout_s",
    "arguments", "tags", "wanted_bytes", "wanted_device", "fallback",
)  # fmt: skip
INSERT_JOB = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
# Most jobs may start immediately and use no extra options: fewer values take less time.
INSERT_PLAIN_JOB = (
    "INSERT INTO jobs (queue, task, arguments, enqueued_at, scheduled_at, priority, max_attempts, state) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, 'available')"
)


def insert_jobs(cursor: Statements, jobs: Sequence[NewJob], queues: Iterable[str] = ()) -> list[int]:
    """Insert jobs, and rows for any of the queues without one; returns the jobs' ids in order."""
    for queue in queues:
        ensure_queue(cursor, queue)
    return [_insert(cursor, job) for job in jobs]


def _insert(cursor: Statements, job: NewJob) -> int:
    queue, task, arguments, enqueued_at_us, priority, max_attempts, extras = job
    is_inline = len(arguments) <= INLINE_BYTES
    if extras is None and is_inline:
        row = (queue, task, arguments, enqueued_at_us, enqueued_at_us, priority, max_attempts)
        return int(cursor.execute(INSERT_PLAIN_JOB, row).lastrowid or 0)
    extras = extras or Extras()
    scheduled_at_us = enqueued_at_us if extras.scheduled_at_us is None else extras.scheduled_at_us
    values = (
        queue,
        task,
        "available" if scheduled_at_us <= enqueued_at_us else "scheduled",
        priority,
        enqueued_at_us,
        scheduled_at_us,
        extras.expires_at_us,
        max_attempts,
        extras.timeout_s,
        arguments if is_inline else None,
        json.dumps(extras.tags) if extras.tags else None,
        extras.wanted_bytes,
        extras.wanted_device,
        json.dumps(extras.fallback) if extras.fallback else None,
    )
    job_id = int(cursor.execute(INSERT_JOB, values).lastrowid or 0)
    if not is_inline:
        cursor.execute(PUT_PAYLOAD, (job_id, "arguments", arguments))
    return job_id


def expect_own(cursor: Statements, dialect: str, database: Path, *, upgrade: str) -> None:
    """Check that a caller's connection is to the queue's own file, and that the file has the current schema.

    `upgrade` is the command that creates or upgrades it. Raises: UsageError.
    """
    if dialect != "sqlite":
        raise UsageError(f"the connection uses {dialect}, but this queue is in {database}")
    file = next(row[2] for row in cursor.execute("PRAGMA database_list") if row[1] == "main")
    if not file or not os.path.exists(database) or not os.path.samefile(file, database):
        raise UsageError(
            f"the connection's database is {file or 'in memory'}, but this queue is in {database}; a job can join a transaction "
            "only in the queue's own database"
        )
    if migrate.VERSION_TABLE not in {row[0] for row in cursor.execute("SELECT name FROM sqlite_master")}:
        raise UsageError(f"{database} has no queue yet; before the transaction, create it with: {upgrade}")
    version = cursor.execute(f"SELECT version_num FROM {migrate.VERSION_TABLE}").fetchone()[0]
    if version != migrate.head():
        raise UsageError(
            f"the queue in {database} has schema {version}, but {migrate.head()} is needed; before the transaction, upgrade it "
            f"with: {upgrade}"
        )
