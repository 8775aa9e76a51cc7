"""Pools the reading connections: lends each to one reader at a time, and closes them before a fork; knows no table.

It has no lock: a step that an interrupted reader did not reach leaves at most a connection to nobody, which is then closed.
"""

from __future__ import annotations

import gc
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident
from typing import Any, Protocol

from gpuqueue.store import forks
from gpuqueue.store.sqlite.connections import Connection

CLOSED = -1  # in place of a thread


class Reader(Protocol):
    """Whoever has a connection lent. If it goes away without giving the connection back, the next reader does that."""

    loan: weakref.ref[Any] | None


class _Block:
    __slots__ = ("__weakref__", "loan")

    def __init__(self) -> None:
        self.loan: weakref.ref[Any] | None = None


class ReadPool:
    """Connections of one process to one file; a new one is opened if all others are lent."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._idle: list[Connection] = []
        self._all: list[weakref.ref[Connection]] = []
        self._loans: dict[weakref.ref[Any], Connection] = {}
        self._lost: list[weakref.ref[Any]] = []  # loans of readers that went away: what appends them runs no Python code
        self._is_open = True

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend a connection for the duration of a block, outside any transaction."""
        reader = _Block()
        connection = self.take(reader)
        try:
            yield connection
        finally:
            self.give_back(reader)

    def take(self, reader: Reader) -> Connection:
        """Lend a connection outside any transaction, until `give_back`."""
        if self._lost:
            self._recover()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = forks.at_work(self._open)
            connection.thread = get_ident()
            # Looked at after the connection was taken: a fork looks in the other order, so one of the two sees the other.
            if not forks.ongoing or forks.is_waited_for() or self._is_lent_to(connection.thread, but=connection):
                reader.loan = loan = weakref.ref(reader, self._lost.append)
                self._loans[loan] = connection
                return connection
            self._idle.append(connection)
            forks.wait()

    def give_back(self, reader: Reader) -> None:
        """Take a connection back; an open transaction is rolled back, and if that fails the connection is closed."""
        loan = reader.loan
        if loan is None:  # it was interrupted before it had one
            return
        connection = self._loans[loan]
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            del self._loans[loan]
            connection.thread = CLOSED
            connection.close()
            raise
        finally:
            reader.loan = None
        connection.thread = 0
        self._idle.append(self._loans.pop(loan))
        if not self._is_open:  # closed by another thread meanwhile
            self.close()

    def _recover(self) -> None:
        self._lost.clear()
        for loan in list(self._loans):
            if loan() is None and (connection := self._loans.pop(loan, None)) is not None:
                connection.thread = CLOSED
                connection.close()

    def quiesce(self, give_up_s: float) -> str | None:
        """While this process forks: wait for the readers and close the connections; returns who still reads.

        A reader that forks is not waited for: it would never end.
        """
        me = get_ident()
        self._recover()
        if self._lent():
            gc.collect()  # what no reader had yet when it was interrupted, since a connection is part of a cycle of its own
        has_ended = forks.until(lambda: all(connection.thread == me for connection in self._lent()), give_up_s)
        self._close_idle()
        if not has_ended:
            return f"a read of the queue in another thread, which took longer than {forks.LONGEST_WAIT_S:g} s,"
        return "a read of the queue, inside which it was forked," if self._lent() else None

    def close(self) -> None:
        """Close all connections; a lent one is closed when it is given back."""
        self._is_open = False
        if self._idle:
            forks.at_work(self._close_idle)

    def _open(self) -> Connection:
        connection = self._connect()
        self._all.append(weakref.ref(connection))
        for reference in list(self._all):
            if reference() is None:
                self._all.remove(reference)
        return connection

    def _close_idle(self) -> None:
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                connection.thread = CLOSED
                connection.close()

    @property
    def open_count(self) -> int:
        """How many connections are open, lent or not."""
        return len(self._all)

    def _lent(self) -> set[Connection]:
        alive = (reference() for reference in list(self._all))
        return {connection for connection in alive if connection is not None and connection.thread != CLOSED}.difference(
            self._idle
        )

    def _is_lent_to(self, thread: int, *, but: Connection) -> bool:
        return any(other.thread == thread and other is not but for other in self._lent())
