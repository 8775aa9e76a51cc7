"""Creates, upgrades or rejects a file by its schema version; imports `alembic` only when there is work to do.

The migrations are Alembic's, in the package `gpuqueue.migrations`. An upgrade runs inside one write transaction: it keeps
out a second process, and a crash half-way rolls it back.
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
    """Return the schema version of an existing file without changing it, None if it has no queue.

    Raises: NotADatabase; another StoreError, after `patience_s` if the file is locked.
    """
    with read_only(path, patience_s=patience_s) as connection:
        return version(connection)


def table_names(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def ensure_schema(engine: Engine, connection: sqlite3.Connection, path: Path) -> None:
    """Upgrade the file to the newest schema; returns immediately if it already has it.

    Raises: NewerSchema for a file of a newer gpuqueue; NotADatabase for a database with a foreign table of the same name.
    """
    with explained(path):
        connection.execute("BEGIN")  # one moment for both reads: another process may be creating the tables
        try:
            found = version(connection)
            names = table_names(connection) if found is None else set()
        finally:
            connection.execute("ROLLBACK")
        if found == head():
            return
        foreign = sorted(names & set(_own_tables())) if names else []
        if foreign:
            raise NotADatabase(f"{path} already has a table `{foreign[0]}` that is not gpuqueue's; give the queue its own file")
        _upgrade(engine, path)


def known_versions() -> list[str]:
    """Return the versions that this gpuqueue can read, oldest first: the prefixes of the migrations' names."""
    names = os.listdir(os.path.join(migrations_folder(), "versions"))
    return sorted(name.partition("_")[0] for name in names if name[0].isdigit())


def expect_known(version: str, path: Path) -> None:
    """Raises: NewerSchema if this gpuqueue cannot read a file of this version."""
    if version not in known_versions():
        raise NewerSchema(
            f"{path} was written by a newer gpuqueue (its schema is {version}, this one supports up to {head()}); "
            "upgrade gpuqueue here: pip install --upgrade gpuqueue"
        )


@cache
def head() -> str:
    """Return the version that this gpuqueue writes."""
    return known_versions()[-1]


def migrations_folder() -> str:
    """Return the folder of the installed migrations: in a wheel, an sdist or an editable checkout."""
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
        # The driver is in autocommit mode, so this code starts and ends the transaction.
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        _begin_immediate(driver)
        try:
            found = version(driver)  # another process may have upgraded meanwhile
            if found is not None:
                expect_known(found, path)
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
