"""Owns the schema's version: creating, upgrading and refusing a file; `alembic` is imported only when there is work to do.

The migrations are Alembic's own, in the package `gpuqueue.migrations`. An upgrade runs inside one write transaction,
which is the lock against a second process and which a crash half-way rolls back.
"""

from __future__ import annotations

import os
import sqlite3
import time
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from gpuqueue.domain.errors import NewerSchema, NotADatabase
from gpuqueue.store.sqlite.connections import READ_TIMEOUT_MS, explained, is_busy, read_only
from gpuqueue.store.sqlite.write_lock import HeldHere

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

VERSION_TABLE = "gpuqueue_version"
UPGRADE_TIMEOUT_S = 60.0


def version(connection: sqlite3.Connection) -> str | None:
    """Return the file's schema version, None for an empty file."""
    if VERSION_TABLE in table_names(connection):
        row = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
        return None if row is None else row[0]
    return None


def schema_version(path: Path, *, patience_s: float = READ_TIMEOUT_MS / 1000) -> str | None:
    """Read the schema version of a file that is there without changing it, None where it has no queue.

    Raises: NotADatabase; another StoreError, after `patience_s` with a file that is locked.
    """
    with read_only(path, patience_s=patience_s) as connection:
        return version(connection)


def table_names(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def ensure_schema(engine: Engine, connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest schema; returns at once when it is there.

    Raises: NewerSchema for a file of a newer gpuqueue; NotADatabase for a database that has a table of one of our names.
    """
    with explained(path):
        connection.execute("BEGIN")  # one moment: another process may be creating the tables
        try:
            found = version(connection)
            names = table_names(connection) if found is None else set()
        finally:
            connection.execute("ROLLBACK")
        if found == head():
            return
        foreign = sorted(names & set(_own_tables())) if names else []
        if foreign:
            raise NotADatabase(
                f"{path} already has a table `{foreign[0]}` that is not gpuqueue's; give the queue a file of its own"
            )
        _upgrade(engine, path)


def known_versions() -> list[str]:
    """Return the versions that this gpuqueue can read, oldest first, as the names of the migrations begin."""
    names = os.listdir(os.path.join(migrations_folder(), "versions"))
    return sorted(name.partition("_")[0] for name in names if name[0].isdigit())


@cache
def head() -> str:
    """Return the version that this gpuqueue writes."""
    return known_versions()[-1]


def migrations_folder() -> str:
    """Find the migrations as they are installed: in a wheel, an sdist or an editable checkout."""
    return next(iter(import_module("gpuqueue.migrations").__path__))


def _own_tables() -> list[str]:
    from gpuqueue.store.tables import metadata

    return list(metadata.tables)


def _upgrade(engine: Engine, path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    HeldHere(path).refuse()
    settings = Config()
    settings.set_main_option("script_location", migrations_folder().replace("%", "%%"))
    with engine.connect() as connection:
        # The driver is in autocommit mode, so the transaction is ours to begin and end.
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        _begin_immediate(driver)
        try:
            found = version(driver)  # another process may have upgraded meanwhile
            if found is not None and found not in known_versions():
                raise NewerSchema(
                    f"{path} was written by a newer gpuqueue (its schema is {found}, this one knows up to {head()}); "
                    "upgrade gpuqueue here: pip install --upgrade gpuqueue"
                )
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")
            if driver.in_transaction:
                driver.execute("COMMIT")
        except BaseException:
            if driver.in_transaction:
                driver.execute("ROLLBACK")
            raise


def _begin_immediate(driver: sqlite3.Connection) -> None:
    give_up_s = time.monotonic() + UPGRADE_TIMEOUT_S
    while True:
        try:
            driver.execute("BEGIN IMMEDIATE")  # the connection waits READ_TIMEOUT_MS each time
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > give_up_s:
                raise
