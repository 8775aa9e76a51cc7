"""Runs write transactions, one for all threads that want to write at the same time; knows no table.

A thread that finds the writer busy leaves its work to the thread that holds it, which runs all waiting work in one
transaction, each call in its own savepoint (flat combining): a failing call fails alone, a failing COMMIT fails all of them.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from gpuqueue.domain.errors import StoreBusy
from gpuqueue.store.sqlite.connections import explain, is_busy
from gpuqueue.store.sqlite.write_lock import EAGER_WAIT_S, PATIENT_WAIT_S, HeldHere, holders, when_free

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class _Call:
    """One thread's work, its outcome, and the lock that the thread waits on while another thread runs it."""

    __slots__ = ("args", "done", "error", "kwargs", "result", "work")

    def __init__(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.result: Any = None
        self.error: BaseException | None = None
        self.done: threading.Lock | None = None


class Writer:
    """Runs write work on one held connection.

    `patient` writers (workers) leave the lock to eager ones (producers). `timeout_s` bounds the wait for the lock.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, path: Path, patient: bool, timeout_s: float) -> None:
        self._connect = connect
        self._path = path
        self._wait_s = PATIENT_WAIT_S if patient else EAGER_WAIT_S
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._queue: deque[_Call] = deque()
        self._held_here = HeldHere(path)
        self.connection: sqlite3.Connection | None = None
        self.cursor: sqlite3.Cursor | None = None  # for `insert`, which would otherwise create one for every row

    def run(
        self,
        work: Callable[Concatenate[sqlite3.Connection, Parameters], Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Run the work in a write transaction and return what it returned, after the commit.

        Raises: what the work raised, with its changes rolled back; StoreBusy if the write lock could not be acquired in time;
        another StoreError; UsageError if this thread would wait for itself.
        """
        if holders:
            self._held_here.refuse()
        call = _Call(work, args, kwargs)
        if self._lock.acquire(blocking=False):
            self._serve(call)
        else:
            call.done = threading.Lock()
            call.done.acquire()
            self._queue.append(call)
            # The holder may have checked the queue just before this: the thread that gets the lock serves it.
            if self._lock.acquire(blocking=False):
                self._serve(None)
            call.done.acquire()
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[no-any-return]

    def insert(self, statement: str, row: Sequence[Any]) -> int:
        """Insert one row and return its id; if no other thread is writing, the statement is its own transaction.

        Raises: as `run`.
        """
        if holders:
            self._held_here.refuse()
        if self._queue or not self._lock.acquire(False):
            return self.run(_insert, statement, row)
        try:
            cursor = self.cursor or self._open().cursor()
            return cursor.execute(statement, row).lastrowid or 0
        except sqlite3.Error as error:
            return self._insert_late(statement, row, error)
        finally:
            self._lock.release()
            if self._queue and self._lock.acquire(False):  # other threads left work to this one meanwhile
                self._serve(None)

    def _insert_late(self, statement: str, row: Sequence[Any], error: sqlite3.Error) -> int:
        """Insert a row after a first error, if that was another process's lock."""
        if not is_busy(error):
            raise explain(error, self._path) from error
        try:
            connection = self._open()
            return self._when_free(lambda: _insert(connection, statement, row))
        except sqlite3.Error as late:
            raise explain(late, self._path) from late

    def quiesce(self, timeout_s: float) -> bool:
        """Allow no transaction until `resume`; returns False if one did not end in time."""
        return self._lock.acquire(timeout=timeout_s)

    def resume(self) -> None:
        """Allow transactions again after `quiesce`."""
        self._lock.release()
        if self._queue and self._lock.acquire(blocking=False):  # other threads left work to this one meanwhile
            self._serve(None)

    def close(self) -> None:
        """Close the connection once no work is running."""
        with self._lock:
            if self.connection is not None:
                self.connection.close()
                self.connection = self.cursor = None

    def _serve(self, own: _Call | None) -> None:
        interrupt: BaseException | None = None
        while True:
            try:
                calls = [] if own is None else [own]
                while self._queue:
                    calls.append(self._queue.popleft())
                if calls:
                    self._transact(calls)
            except BaseException as error:  # an interrupt waits until the calls left to this thread are served
                interrupt = interrupt or error
            finally:
                self._lock.release()
            own = None
            # A call may have been queued after the last check and before the release.
            if not self._queue or not self._lock.acquire(blocking=False):
                break
        if interrupt is not None:
            raise interrupt

    def _transact(self, calls: list[_Call]) -> None:
        connection = None
        try:
            connection = self.connection or self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                self._when_free(lambda: connection.execute("BEGIN IMMEDIATE"))
            if len(calls) == 1:
                call = calls[0]
                call.result = call.work(connection, *call.args, **call.kwargs)
            else:
                for call in calls:
                    self._run_in_savepoint(connection, call)
            connection.execute("COMMIT")
        except BaseException as error:
            failure = explain(error, self._path) if isinstance(error, sqlite3.Error) else error
            if failure is not error:
                failure.__cause__ = error
            # The calls get their error before the rollback, which may itself fail on a broken disk.
            is_interrupt = not isinstance(error, Exception)  # it is meant for this thread only
            for call in calls:
                if is_interrupt:
                    call.error = StoreBusy(
                        "the thread that was writing for this one was interrupted; nothing was changed, try again"
                    )
                else:
                    call.error = call.error or failure
            if connection is not None and connection.in_transaction:
                connection.execute("ROLLBACK")
            if is_interrupt:
                raise
        finally:
            for call in calls:
                if call.done is not None:
                    call.done.release()

    def _run_in_savepoint(self, connection: sqlite3.Connection, call: _Call) -> None:
        connection.execute("SAVEPOINT one_call")
        try:
            call.result = call.work(connection, *call.args, **call.kwargs)
        except Exception as error:
            if not connection.in_transaction:  # SQLite has rolled back everything, as it does on a full disk
                raise
            connection.execute("ROLLBACK TO one_call")
            call.error = explain(error, self._path) if isinstance(error, sqlite3.Error) else error
        connection.execute("RELEASE one_call")

    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            self.connection = self._connect()
            self.connection.execute("PRAGMA busy_timeout = 0")
            self.cursor = self.connection.cursor()
        return self.connection

    def _when_free(self, work: Callable[[], Result]) -> Result:
        """Call `work` until the write lock is free. Raises: StoreBusy if it could not be acquired in time."""
        try:
            return when_free(work, wait_s=self._wait_s, timeout_s=self._timeout_s)
        except sqlite3.OperationalError as error:
            if not is_busy(error):
                raise
            raise StoreBusy(
                f"{self._path} stayed locked for {self._timeout_s:g} s by another process; nothing was changed, try again"
            ) from None


def _insert(connection: sqlite3.Connection, statement: str, row: Sequence[Any]) -> int:
    return connection.execute(statement, row).lastrowid or 0
