"""Stores jobs inside the caller's transaction, which the caller commits or rolls back.

With a Session or Django's connection the workers are woken when the transaction ends. A plain Connection does not report its
end: workers find the job at their next check, within 250 ms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import NewJob
from gpuqueue.store import forks

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, SessionTransaction

    from gpuqueue.contract.engine import Statements

_RINGS = "gpuqueue: wakeups to send when the transaction has ended"


def unwrapped(connection: Any) -> Any:
    """Find the session behind a scoped one, sync or async."""
    registry = getattr(connection, "registry", None)
    return registry() if callable(registry) else connection


def is_awaited(connection: Any) -> bool:
    """Say whether this is an AsyncConnection or an AsyncSession, which must be awaited."""
    return hasattr(connection, "run_sync")


def store(
    jobs: Sequence[NewJob], connection: Any, *, database: Path, ensured: Collection[str], ring: Callable[[], None]
) -> list[int]:
    """Store jobs in the caller's transaction and return their ids; `ensured` are queues known to have a row.

    Raises: UsageError if the connection is not to the queue's own file; ForkedWithOpenFile; SQLAlchemy's errors.
    """
    forks.refuse_inherited(database)
    connection = unwrapped(connection)
    if is_awaited(connection):
        raise UsageError("an async connection or session must be awaited; use aenqueue or aenqueue_many")
    if _is_djangos(connection):
        return _store_within_django(jobs, connection, database, ensured, ring)
    session = _session(connection)
    ids = _insert(jobs, _Statements(connection if session is None else session.connection(), database), ensured)
    if session is not None:
        _ring_at_the_end(session, ring)
    return ids


def _insert(jobs: Sequence[NewJob], statements: Statements, ensured: Collection[str]) -> list[int]:
    from gpuqueue.store.handed import insert_jobs

    return insert_jobs(statements, jobs, {job.queue for job in jobs}.difference(ensured))


# --- Django ---


def _is_djangos(connection: Any) -> bool:
    # Includes `django.db.connection`, a proxy for the thread's connection.
    return hasattr(connection, "settings_dict") and hasattr(connection, "in_atomic_block")


def _store_within_django(
    jobs: Sequence[NewJob], connection: Any, database: Path, ensured: Collection[str], ring: Callable[[], None]
) -> list[int]:
    from django.db import transaction

    driver = _DjangoStatements(connection, database)
    if not (connection.in_atomic_block or connection.get_autocommit()):
        return _insert(jobs, driver, ensured)  # a transaction that the caller ends by hand does not report its end
    # Outside a transaction of the caller, the rows must still appear together: a worker must not see half a job.
    with transaction.atomic(using=connection.alias):
        ids = _insert(jobs, driver, ensured)
        transaction.on_commit(ring, using=connection.alias, robust=True)
    return ids


class _Statements:
    """A SQLAlchemy connection that accepts an engine's statements as the engine's own connection would."""

    _upgrade = "gpuqueue db upgrade"

    def __init__(self, connection: Any, database: Path) -> None:
        from gpuqueue.store.handed import expect_own

        self._connection = connection
        expect_own(self, self._dialect(), database, upgrade=self._upgrade)

    def _dialect(self) -> str:
        if not callable(getattr(self._connection, "exec_driver_sql", None)):
            raise UsageError(
                f"connection must be a SQLAlchemy Connection or Session, or Django's connection, not {self._connection!r}"
            )
        connection: Connection = self._connection
        return connection.dialect.name

    def execute(self, statement: str, values: Any = (), /) -> Any:
        return self._connection.exec_driver_sql(statement, tuple(values))


class _DjangoStatements(_Statements):
    """The same for Django's connection, with `%s` in place of `?`."""

    _upgrade = "manage.py migrate"

    def _dialect(self) -> str:
        return str(self._connection.vendor)

    def execute(self, statement: str, values: Any = (), /) -> Any:
        cursor = self._connection.cursor()
        cursor.execute(statement.replace("%", "%%").replace("?", "%s"), tuple(values))
        return cursor


def _session(connection: Any) -> Session | None:
    orm = sys.modules.get("sqlalchemy.orm")  # if it is not imported, this cannot be a session
    return connection if orm is not None and isinstance(connection, orm.Session) else None


def _ring_at_the_end(session: Session, ring: Callable[[], None]) -> None:
    from sqlalchemy import event

    if not event.contains(session, "after_transaction_end", _transaction_ended):
        event.listen(session, "after_transaction_end", _transaction_ended)
    session.info.setdefault(_RINGS, []).append(ring)


def _transaction_ended(session: Session, transaction: SessionTransaction) -> None:
    # A savepoint's end publishes nothing. After a rollback the wakeup finds nothing, which does no harm.
    if transaction.parent is None:
        for ring in session.info.pop(_RINGS, ()):
            ring()
