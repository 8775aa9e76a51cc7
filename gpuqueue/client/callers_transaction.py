"""Owns storing jobs inside a transaction that belongs to the caller: it waits, commits and rolls back as its owner says.

With a Session or Django's connection the workers are woken when the transaction has ended; with a plain Connection, whose end
nobody tells, they find the job at their next look, within 250 ms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.errors import UsageError
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.jobs import NewJob, ensure_queue, insert_job

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
    if _is_djangos(connection):
        return _store_within_django(jobs, connection, database, ensured, ring)
    session = _session(connection)
    ids = _insert(jobs, _Statements(connection if session is None else session.connection(), database), ensured)
    if session is not None:
        _ring_at_the_end(session, ring)
    return ids


def _insert(jobs: Sequence[NewJob], driver: _Statements, ensured: Collection[str]) -> list[int]:
    for queue in {row[0] for _, row, _ in jobs} - set(ensured):
        ensure_queue(driver, queue)
    return [insert_job(driver, job) for job in jobs]


# --- Django ---


def _is_djangos(connection: Any) -> bool:
    # Also `django.db.connection`, which is a proxy of the thread's own.
    return hasattr(connection, "settings_dict") and hasattr(connection, "in_atomic_block")


def _store_within_django(
    jobs: Sequence[NewJob], connection: Any, database: Path, ensured: Collection[str], ring: Callable[[], None]
) -> list[int]:
    from django.db import transaction

    driver = _DjangoStatements(connection, database)
    if not (connection.in_atomic_block or connection.get_autocommit()):
        return _insert(jobs, driver, ensured)  # whoever ends this transaction by hand tells nobody
    # Outside of a transaction of the caller's the rows still come together: a worker must not see half of a job.
    with transaction.atomic(using=connection.alias):
        ids = _insert(jobs, driver, ensured)
        transaction.on_commit(ring, using=connection.alias, robust=True)
    return ids


class _Statements:
    """A SQLAlchemy connection that takes the store's statements as SQLite's own would."""

    _upgrade = "gpuqueue db upgrade"

    def __init__(self, connection: Any, database: Path) -> None:
        self._connection = connection
        dialect = self._dialect()
        if dialect != "sqlite":
            raise UsageError(f"the connection speaks to {dialect}, and this queue lives in {database}")
        file = next(row[2] for row in self.execute("PRAGMA database_list") if row[1] == "main")
        if not file or not os.path.exists(database) or not os.path.samefile(file, database):
            raise UsageError(
                f"the connection's database is {file or 'in memory'}, and this queue lives in {database}: a job belongs to a "
                "transaction only when both are one file"
            )
        if migrate.VERSION_TABLE not in {row[0] for row in self.execute("SELECT name FROM sqlite_master")}:
            raise UsageError(f"{database} has no queue yet; create it before the transaction begins: {self._upgrade}")
        version = self.execute(f"SELECT version_num FROM {migrate.VERSION_TABLE}").fetchone()[0]
        if version != migrate.HEAD:
            raise UsageError(
                f"the queue in {database} has schema {version}, and {migrate.HEAD} is needed; upgrade it before the transaction "
                f"begins: {self._upgrade}"
            )

    def _dialect(self) -> str:
        if not callable(getattr(self._connection, "exec_driver_sql", None)):
            raise UsageError(
                f"connection takes Django's connection, or a SQLAlchemy Connection or Session, not {self._connection!r}"
            )
        connection: Connection = self._connection
        return connection.dialect.name

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.exec_driver_sql(statement, tuple(values))


class _DjangoStatements(_Statements):
    """The same for Django's connection, whose cursor wants `%s` in place of `?`."""

    _upgrade = "manage.py migrate"

    def _dialect(self) -> str:
        return str(self._connection.vendor)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(statement.replace("%", "%%").replace("?", "%s"), tuple(values))
        return cursor


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
