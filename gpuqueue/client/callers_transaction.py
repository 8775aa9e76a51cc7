"""Owns storing jobs inside a transaction that belongs to the caller: it waits, commits and rolls back as its owner says.

With a Session or Django's connection the workers are woken when the transaction has ended; with a plain Connection, whose end
nobody tells, they find the job at their next look, within 250 ms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import NewJob

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, SessionTransaction

    from gpuqueue.contract.engine import Statements

_RINGS = "gpuqueue: what to ring when the transaction has ended"


def unwrapped(connection: Any) -> Any:
    """Find the session behind a scoped one, sync or async."""
    registry = getattr(connection, "registry", None)
    return registry() if callable(registry) else connection


def is_awaited(connection: Any) -> bool:
    """Say whether this is an AsyncConnection or an AsyncSession, whose work is awaited."""
    return hasattr(connection, "run_sync")


def store(
    jobs: Sequence[NewJob], connection: Any, *, database: Path, ensured: Collection[str], ring: Callable[[], None]
) -> list[int]:
    """Store jobs in the caller's transaction and return their ids; `ensured` are queues that surely have a row.

    Raises: UsageError when the connection is not one to the queue's own file; what SQLAlchemy raises.
    """
    connection = unwrapped(connection)
    if is_awaited(connection):
        raise UsageError("an async connection or session is awaited: use aenqueue or aenqueue_many")
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
    """A SQLAlchemy connection that takes an engine's statements as the engine's own would."""

    _upgrade = "gpuqueue db upgrade"

    def __init__(self, connection: Any, database: Path) -> None:
        from gpuqueue.store.handed import expect_own

        self._connection = connection
        expect_own(self, self._dialect(), database, upgrade=self._upgrade)

    def _dialect(self) -> str:
        if not callable(getattr(self._connection, "exec_driver_sql", None)):
            raise UsageError(
                f"connection takes Django's connection, or a SQLAlchemy Connection or Session, not {self._connection!r}"
            )
        connection: Connection = self._connection
        return connection.dialect.name

    def execute(self, statement: str, values: Any = (), /) -> Any:
        return self._connection.exec_driver_sql(statement, tuple(values))


class _DjangoStatements(_Statements):
    """The same for Django's connection, whose cursor wants `%s` in place of `?`."""

    _upgrade = "manage.py migrate"

    def _dialect(self) -> str:
        return str(self._connection.vendor)

    def execute(self, statement: str, values: Any = (), /) -> Any:
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
