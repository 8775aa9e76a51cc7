"""Pools the reading connections: lends each to one reader at a time, and closes them before a fork; knows no table.

It has no lock: a step that an interrupted reader did not reach leaves a connection to nobody, and that is then closed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident

from gpuqueue.store import forks
from gpuqueue.store.sqlite.connections import Connection


class ReadPool:
    """Connections of one process to one file; a new one is opened if all others are lent."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._idle: list[Connection] = []
        self._all: list[weakref.ref[Connection]] = []
        self._is_open = True

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend a connection for the duration of a block, outside any transaction."""
        connection = self.take()
        try:
            yield connection
        finally:
            self.give_back(connection)

    def take(self) -> Connection:
        """Lend a connection outside any transaction, until `give_back`."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = forks.at_work(self._open)
            connection.thread = get_ident()
            # Looked at after the connection was taken: a fork looks in the other order, so one of the two sees the other.
            if forks.current is None or self._is_lent_to(connection.thread, beside=connection):
                return connection
            self._idle.append(connection)
            forks.wait()

    def give_back(self, connection: Connection) -> None:
        """Take a connection back; an open transaction is rolled back, and if that fails the connection is closed."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except BaseException:
            self._all.remove(weakref.ref(connection))
            connection.close()
            raise
        connection.thread = 0
        self._idle.append(connection)
        if not self._is_open:  # closed by another thread meanwhile
            self.close()

    def quiesce(self, give_up_s: float) -> str | None:
        """While this process forks: wait for the readers and close the connections; returns who still reads.

        A reader that forks is not waited for: it would never end.
        """
        me = get_ident()
        has_ended = forks.until(lambda: all(reader.thread == me for reader in self._lent()), give_up_s)
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
                self._idle.pop().close()

    @property
    def open_count(self) -> int:
        """How many connections are open, lent or not."""
        return len(self._all)

    def _lent(self) -> set[Connection]:
        alive = (reference() for reference in list(self._all))
        return {connection for connection in alive if connection is not None}.difference(self._idle)

    def _is_lent_to(self, thread: int, *, beside: Connection) -> bool:
        return any(reader.thread == thread and reader is not beside for reader in self._lent())
