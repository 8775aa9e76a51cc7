"""Pools the reading connections: lends each to one reader at a time, and can quiesce them all; knows no table."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ReadPool:
    """Connections of one process to one file; a new one is opened if all others are lent."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: list[sqlite3.Connection] = []
        self.lent_count = 0
        self._is_open = True
        self._is_quiet = False
        self._changed = threading.Condition(threading.Lock())

    @contextmanager
    def lend(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for the duration of a block, outside any transaction."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def take(self) -> sqlite3.Connection:
        """Lend a connection outside any transaction, until `give_back`."""
        with self._changed:
            while self._is_quiet:
                self._changed.wait()
            self.lent_count += 1
            connection = self._idle.pop() if self._idle else None
        try:
            return connection or self._connect()
        except BaseException:
            self._returned(None)
            raise

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Take a connection back; an open transaction is rolled back, and if that fails the connection is closed."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            self._returned(None)
            raise
        self._returned(connection)

    def _returned(self, connection: sqlite3.Connection | None) -> None:
        with self._changed:
            self.lent_count -= 1
            if connection is not None and self._is_open:
                self._idle.append(connection)
            elif connection is not None:  # closed by another thread meanwhile
                connection.close()
            if self._is_quiet:
                self._changed.notify_all()

    def quiesce(self, timeout_s: float) -> bool:
        """Lend no connection until `resume`; returns False if one was not given back in time."""
        with self._changed:
            self._is_quiet = True
            return self._changed.wait_for(lambda: not self.lent_count, timeout_s)

    def resume(self) -> None:
        """Lend connections again after `quiesce`."""
        with self._changed:
            self._is_quiet = False
            self._changed.notify_all()

    def close(self) -> None:
        """Close all connections; a lent one is closed when it is given back."""
        with self._changed:
            self._is_open = False
            while self._idle:
                self._idle.pop().close()
