"""Runs write transactions, one for all threads that want to write at the same time; knows no table.

A thread that finds the writer busy leaves its work to the thread that is next, which runs all waiting work in one transaction,
each call in its own savepoint (flat combining): a failing call fails alone, a failing COMMIT fails all of them. If that thread
is interrupted, nothing was changed, and another of those that wait does the same.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, Concatenate, ParamSpec, TypeVar

from gpuqueue.domain.errors import StoreBusy, UsageError
from gpuqueue.store import forks
from gpuqueue.store.sqlite.connections import explain, is_busy
from gpuqueue.store.sqlite.write_lock import EAGER_WAIT_S, PATIENT_WAIT_S, HeldHere, holders, when_free
from gpuqueue.store.turns import Turn, Turns, new_turn

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

STALE_S = 0.01  # more than the time for which the connection can be in use by a thread other than `_inserter`


class _Call:
    """One thread's work and its outcome, which counts once `ended` is not empty."""

    __slots__ = ("args", "ended", "error", "kwargs", "result", "work")

    def __init__(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended: Sequence[object] = ()


class Writer:
    """Runs write work on one held connection.

    `patient` writers (workers) leave the lock to eager ones (producers). `timeout_s` bounds the wait for the lock.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, path: Path, patient: bool, timeout_s: float) -> None:
        self._connect = connect
        self._path = path
        self._wait_s = PATIENT_WAIT_S if patient else EAGER_WAIT_S
        self._timeout_s = timeout_s
        self._refusal = (
            f"this thread is already writing to {path}: a signal handler or a finalizer cannot do so in the middle of that. "
            "Let it set a flag, and enqueue the job afterwards"
        )
        self._turns = Turns(self._refusal)
        self._in_use = Lock()  # held while the connection is used, with or without a turn
        self._inserter = 0  # the thread that uses it without
        self._fork: Turn | None = None
        self._is_quiet = False  # for a fork
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
        if self._inserter == get_ident():
            self._refuse_within_insert()
        call = _Call(work, args, kwargs)
        turns = self._turns
        _, is_running, _, later = turns.last
        ended, running = Lock(), Lock()
        mine: Turn = (ended, running, get_ident(), [])
        with ended, running:
            if not is_running.locked():  # as in `insert`
                later.append(mine)
                if later[0] is mine:
                    turns.last = mine
                    self._transact(call, mine)
            while not call.ended:
                turn = turns.ask(mine)
                if turn is mine:
                    if not call.ended:  # another thread may have run it since the last look; nobody does now
                        self._transact(call, mine)
                else:  # whose thread runs this call too, unless it has begun already, or is interrupted
                    self._queue.append(call)
                    with turn[0]:
                        pass
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[no-any-return]

    def insert(self, statement: str, row: Sequence[Any]) -> int:
        """Insert one row and return its id; if no other thread is writing, the statement is its own transaction.

        Raises: as `run`.
        """
        if holders:
            self._held_here.refuse()
        in_use, thread = self._in_use, get_ident()
        if not self._queue and not in_use.locked():
            with in_use:  # without a turn, which takes more steps: every enqueue passes through here
                self._inserter = thread  # the first step in the block, as a signal handler must find it done
                try:
                    cursor = self.cursor or self._open().cursor()
                    return cursor.execute(statement, row).lastrowid or 0
                except sqlite3.Error as error:
                    return self._insert_late(statement, row, error)
                finally:
                    self._inserter = 0
        return self.run(_insert, statement, row)

    def _refuse_within_insert(self) -> None:
        """Raises: UsageError if a signal handler or a finalizer writes in the middle of its own thread's insert."""
        # An interrupt at the very end of an insert may leave its thread named. Then nobody uses the connection, or another thread
        # does that is about to name itself.
        if self._in_use.acquire(timeout=STALE_S):
            self._in_use.release()
        elif self._inserter == get_ident():
            raise UsageError(self._refusal)

    def _insert_late(self, statement: str, row: Sequence[Any], error: sqlite3.Error) -> int:
        """Insert a row after a first error, if that was another process's lock."""
        if not is_busy(error):
            raise explain(error, self._path) from error
        try:
            connection = self._open()
            return self._when_free(lambda: _insert(connection, statement, row))
        except sqlite3.Error as late:
            raise explain(late, self._path) from late

    def quiesce(self, give_up_s: float) -> str | None:
        """Wait for the turn, close the connection and keep the turn until `resume`; returns what still writes.

        A transaction inside which this thread forks is not waited for: it would never end.
        """
        self._fork = mine = new_turn()
        mine[0].acquire()
        mine[1].acquire()
        try:
            if self._inserter == get_ident():
                self._refuse_within_insert()
            if not (
                forks.until(lambda: self._turns.ask(mine) is mine, give_up_s)
                and forks.until(lambda: self._in_use.acquire(blocking=False), give_up_s)
            ):
                return f"a write to the queue in another thread, which took longer than {forks.LONGEST_WAIT_S:g} s,"
        except UsageError:
            return "a write to the queue, inside which it was forked,"
        self._is_quiet = True
        self._close()
        return None

    def resume(self) -> None:
        """Allow transactions again after `quiesce`."""
        if self._is_quiet:
            self._is_quiet = False
            self._in_use.release()
        if self._fork is not None:
            self._fork[1].release()
            self._fork[0].release()
            self._fork = None

    def close(self) -> None:
        """Close the connection once no work is running; work that waits behind this opens it again."""
        if self._inserter == get_ident():
            self._refuse_within_insert()
        mine = new_turn()
        with mine[0], mine[1]:
            while (turn := self._turns.ask(mine)) is not mine:
                with turn[0]:
                    pass
            with self._in_use:
                self._close()

    def _close(self) -> None:
        if self.connection is not None:
            self.cursor = None
            self.connection.close()
            self.connection = None

    def _transact(self, own: _Call, mine: Turn) -> None:
        with self._in_use:
            self._inserter = 0
            calls = {own: None}
            # A signal handler's exception, which only the main thread meets, could not be told from one of another thread's work.
            while self._queue and mine[2] != threading.main_thread().ident:
                other = self._queue.popleft()
                if not other.ended:
                    calls[other] = None
            ended: list[object] = []
            for call in calls:
                call.error, call.ended = None, ended
            connection = None
            try:
                connection = self.connection or self._open()
                with connection:  # unless the transaction is committed, this rolls it back: nothing can come between
                    try:
                        connection.execute("BEGIN IMMEDIATE")
                    except sqlite3.OperationalError as error:
                        if not is_busy(error):
                            raise
                        self._when_free(lambda: connection.execute("BEGIN IMMEDIATE"))
                    if len(calls) == 1:
                        own.result = own.work(connection, *own.args, **own.kwargs)
                    else:
                        for call in calls:
                            self._run_in_savepoint(connection, call)
                    # One step, so that no interrupt can leave the calls of a committed transaction to be run again.
                    ended.extend(map(connection.execute, ("COMMIT",)))
            except Exception as error:
                failure = explain(error, self._path) if isinstance(error, sqlite3.Error) else error
                if failure is not error:
                    failure.__cause__ = error
                for call in calls:
                    call.error = call.error or failure
                ended.append(failure)
                if connection is not None and connection.in_transaction:  # it could not be rolled back
                    self._close()

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
