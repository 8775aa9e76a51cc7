"""Provides a database ENGINE whose connections wait for SQLite's write lock as gpuqueue's own do; knows no queue.

It is Django's SQLite backend with a write-ahead log, IMMEDIATE transactions, and a fair wait in place of SQLite's own, which
starves while workers are busy. `OPTIONS["timeout"]` bounds the wait in seconds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.sqlite3 import base
from django.utils.asyncio import async_unsafe

from gpuqueue.integrations.django import holding
from gpuqueue.integrations.django.sqlite3.creation import DatabaseCreation
from gpuqueue.integrations.django.sqlite3.line import Line, line_for
from gpuqueue.store.sqlite.connections import READ_TIMEOUT_MS, is_busy, write_ahead

__all__ = ["DatabaseWrapper"]

TIMEOUT_S = 10.0
holding.watch()
WRITES = ("BEGIN", "INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "ALTER", "DROP")


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's connection to an SQLite file that it shares with busy writers."""

    creation_class = DatabaseCreation
    transaction_mode: str | None
    init_commands: list[str]
    line: Line | None = None  # None for a database in memory, which no other connection writes

    def get_connection_params(self) -> dict[str, Any]:
        params: dict[str, Any] = super().get_connection_params()
        if self.transaction_mode == "DEFERRED":
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['transaction_mode'] is DEFERRED, but a DEFERRED transaction cannot wait "
                "for the write lock once it has read. Remove the option; this ENGINE uses IMMEDIATE"
            )
        self.transaction_mode = self.transaction_mode or "IMMEDIATE"
        self._timeout_s = float(params.pop("timeout", TIMEOUT_S))
        # While the file is being opened, SQLite itself waits for other processes.
        params["timeout"] = READ_TIMEOUT_MS / 1000
        self.init_commands = ["PRAGMA synchronous = NORMAL", *self.init_commands]
        return params

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> sqlite3.Connection:
        connection: sqlite3.Connection = super().get_new_connection(conn_params)
        self.line = None
        if not self.is_in_memory_db():
            mode = write_ahead(connection)
            if mode != "wal":
                raise sqlite3.OperationalError(
                    f"{self.settings_dict['NAME']} cannot use a write-ahead log (its mode is {mode}); is it on a network file "
                    "system?"
                )
            connection.execute("PRAGMA busy_timeout = 0")
            self.line = line_for(os.path.realpath(Path(self.settings_dict["NAME"])))
        return connection

    def create_cursor(self, name: str | None = None) -> sqlite3.Cursor:
        cursor: WaitingCursor = self.connection.cursor(factory=WaitingCursor)
        cursor.line = self.line
        cursor.timeout_s = self._timeout_s
        return cursor

    def _set_autocommit(self, autocommit: bool) -> None:
        # The transaction that the driver then begins itself, before the first statement that writes, must wait as well.
        with self.wrap_database_errors:
            self.connection.isolation_level = None if autocommit else self.transaction_mode


class WaitingCursor(base.SQLiteCursorWrapper):
    """A cursor that waits in line for the write lock if a statement begins a transaction, or is one by itself."""

    line: Line | None = None
    timeout_s: float = TIMEOUT_S

    def execute(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> Any:
        line = self.line
        execute = super().execute
        if line is None or self.connection.in_transaction:
            return execute(query, params)
        if query.lstrip()[:10].upper().startswith(WRITES):
            return line.wait(lambda: execute(query, params), self.timeout_s)
        try:
            return execute(query, params)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
        return line.wait(lambda: execute(query, params), self.timeout_s)

    def executemany(self, query: str, param_list: Any) -> Any:
        line = self.line
        execute = super().executemany
        if line is None or self.connection.in_transaction or self.connection.isolation_level is not None:
            return execute(query, param_list)
        # Each row would be its own transaction, and one in the middle could find the file locked: repeating the call would then
        # store the rows before it twice.
        self.execute("BEGIN IMMEDIATE")
        try:
            done = execute(query, param_list)
        except BaseException:
            self.connection.rollback()
            raise
        self.connection.commit()
        return done

    def executescript(self, script: str) -> Any:
        if self.line is None:
            return super().executescript(script)
        # The script manages its own transactions.
        self.connection.execute(f"PRAGMA busy_timeout = {int(self.timeout_s * 1000)}")
        try:
            return super().executescript(script)
        finally:
            self.connection.execute("PRAGMA busy_timeout = 0")
