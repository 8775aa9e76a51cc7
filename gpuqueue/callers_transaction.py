"""Owns storing jobs inside a transaction that belongs to the caller: it waits, commits and rolls back as its owner says.

With a Session the workers are woken when its transaction has ended; with a plain Connection, whose end nobody tells, they
find the job at their next look, within 250 ms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuqueue.errors import UsageError
from gpuqueue.store import migrate
from gpuqueue.store.jobs import NewJob, ensure_queue, insert_job

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, SessionTransaction

_RINGS = "gpuqueue: what to ring when the transaction has ended"


def unwrapped(connection: Any) -> Any:
    """Find the session behind a scoped one, sync or async."""
    registry = getattr(connection, "registry", None)
    return registry() if callable(registry) else connection


def is_async(connection: Any) -> bool:
    """Say whether this is an AsyncConnection or an AsyncSession, whose work is awaited."""
    return hasattr(connection, "run_sync")


def store(
    jobs: Sequence[NewJob], connection: Any, *, database: Path, ensured: Collection[str], ring: Callable[[], None]
) -> list[int]:
    """Store jobs in the caller's transaction and return their ids; `ensured` are queues that surely have a row.

    Raises: UsageError when the connection is not one to the queue's own file; what SQLAlchemy raises.
    """
    connection = unwrapped(connection)
    if is_async(connection):
        raise UsageError("an async connection or session is awaited: use aenqueue or aenqueue_many")
    session = _session(connection)
    driver = _Statements(connection if session is None else session.connection(), database)
    for queue in {job.queue for job in jobs} - set(ensured):
        ensure_queue(driver, queue)
    ids = [insert_job(driver, job) for job in jobs]
    if session is not None:
        _ring_at_the_end(session, ring)
    return ids


class _Statements:
    """A SQLAlchemy connection that takes the store's statements as SQLite's own would."""

    def __init__(self, connection: Connection, database: Path) -> None:
        if not callable(getattr(connection, "exec_driver_sql", None)):
            raise UsageError(f"connection takes a SQLAlchemy Connection or Session, not {connection!r}")
        if connection.dialect.name != "sqlite":
            raise UsageError(f"the connection speaks to {connection.dialect.name}, and this queue lives in {database}")
        self._connection = connection
        file = next(row[2] for row in self.execute("PRAGMA database_list") if row[1] == "main")
        if not file or not os.path.exists(database) or not os.path.samefile(file, database):
            raise UsageError(
                f"the connection's database is {file or 'in memory'}, and this queue lives in {database}: a job belongs to a "
                "transaction only when both are one file"
            )
        if migrate.VERSION_TABLE not in {row[0] for row in self.execute("SELECT name FROM sqlite_master")}:
            raise UsageError(f"{database} has no queue yet; create it before the transaction begins: gpuqueue db upgrade")
        version = self.execute(f"SELECT version_num FROM {migrate.VERSION_TABLE}").fetchone()[0]
        if version != migrate.HEAD:
            raise UsageError(
                f"the queue in {database} has schema {version}, and {migrate.HEAD} is needed; upgrade it before the transaction "
                "begins: gpuqueue db upgrade"
            )

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.exec_driver_sql(statement, tuple(values))


def _session(connection: Any) -> Session | None:
    orm = sys.modules.get("sqlalchemy.orm")  # without it, nobody has a session
    return connection if orm is not None and isinstance(connection, orm.Session) else None


def _ring_at_the_end(session: Session, ring: Callable[[], None]) -> None:
    from sqlalchemy import event

    if not event.contains(session, "after_transaction_end", _transaction_ended):
        event.listen(session, "after_transaction_end", _transaction_ended)
    session.info.setdefault(_RINGS, []).append(ring)


def _transaction_ended(session: Session, transaction: SessionTransaction) -> None:
    # A savepoint's end publishes nothing. After a rollback the ring finds nothing either, and harms nobody.
    if transaction.parent is None:
        for ring in session.info.pop(_RINGS, ()):
            ring()
