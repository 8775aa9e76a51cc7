"""Runs write transactions, one for all threads that want to write at the same time; knows no table.

A thread that finds the writer busy leaves its work to the thread that is next, which runs all waiting work in one transaction,
each call in its own savepoint (flat combining): a failing call fails alone, a failing COMMIT fails all of them. If that thread
is interrupted, nothing was changed, and another of those that wait does the same. If one that waits is interrupted, its call is
not begun any more.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
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

STALE_S = 0.01  # more than the time for which the connection can be in use by a thread other than `_user`


class _Call:
    """One thread's work and its outcome, which counts once `ended` is not empty."""

    __slots__ = ("args", "ended", "error", "kwargs", "result", "waiting", "work")

    def __init__(self, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], waiting: Lock) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.waiting = waiting  # locked while the thread wants it to be done
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
        self._user = 0  # the thread that uses it
        self._queue: deque[_Call] = deque()
        self._held_here = HeldHere(path)
        # Of the connection, if that is open. `insert` uses it, which would otherwise create one for every row.
        self.cursor: sqlite3.Cursor | None = None

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
        if forks.ongoing or self._user == get_ident():
            self._refuse_within()
        turns = self._turns
        _, is_running, _, later = turns.last
        ended, running = Lock(), Lock()
        mine: Turn = (ended, running, get_ident(), [])
        call = _Call(work, args, kwargs, running)
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
                self._user = thread  # the first step in the block, as a signal handler must find it done
                try:
                    cursor = self.cursor
                    if cursor is not None:
                        return cursor.execute(statement, row).lastrowid or 0
                except sqlite3.Error as error:
                    return self._insert_late(statement, row, error)
                finally:
                    self._user = 0
        return self.run(_insert, statement, row)

    def _refuse_within(self) -> None:
        """Raises: UsageError if a signal handler or a finalizer writes in the middle of its own thread's write or fork."""
        if self._is_used_here():
            raise UsageError(self._refusal)
        if forks.ongoing and not forks.is_waited_for():
            forks.wait()

    def _is_used_here(self) -> bool:
        me = get_ident()
        # An interrupt at the very end of a use may leave its thread named. Then nobody uses the connection, or another thread
        # does that is about to name itself.
        return self._user == me and not forks.until(
            lambda: self._user != me or not self._in_use.locked(), time.monotonic() + STALE_S
        )

    def _insert_late(self, statement: str, row: Sequence[Any], error: sqlite3.Error) -> int:
        """Insert a row after a first error, if that was another process's lock."""
        if not is_busy(error):
            raise explain(error, self._path) from error
        try:
            connection = (self.cursor or self._open()).connection
            return self._when_free(lambda: _insert(connection, statement, row))
        except sqlite3.Error as late:
            raise explain(late, self._path) from late

    def quiesce(self, give_up_s: float) -> str | None:
        """Close the connection once no work is running; returns what still writes. What comes meanwhile waits for the fork.

        A transaction inside which this thread forks is not waited for: it would never end.
        """
        if self._is_used_here():
            return "a write to the queue, inside which it was forked,"
        if self.close_if_free():
            return None
        # Work that nobody wants: inserts find it, and go the long way, where they see that this process forks.
        self._queue.append(_Call(_insert, (), {}, Lock()))
        if forks.until(self.close_if_free, give_up_s):
            return None
        return f"a write to the queue in another thread, which took longer than {forks.LONGEST_WAIT_S:g} s,"

    def close(self) -> None:
        """Close the connection once no work is running; work that waits behind this opens it again."""
        if forks.ongoing or self._user == get_ident():
            self._refuse_within()
        mine = new_turn()
        with mine[0], mine[1]:
            while (turn := self._turns.ask(mine)) is not mine:
                with turn[0]:
                    pass
            with self._in_use:
                self._user = mine[2]
                self._close()
                self._user = 0

    def close_if_free(self) -> bool:
        """Close the connection if nobody uses it, without any wait; returns whether nobody did."""
        taken: list[bool] = []
        try:
            # One step, so that no interrupt can leave the lock taken by nobody.
            taken.extend(map(self._in_use.acquire, (False,)))
            if taken[0]:
                self._user = get_ident()
                self._close()
                self._user = 0
            return taken[0]
        finally:
            if True in taken:
                self._in_use.release()

    def _close(self) -> None:
        # If it is interrupted in between, nobody has the connection, which is then closed too.
        cursor, self.cursor = self.cursor, None
        if cursor is not None:
            cursor.connection.close()

    def _transact(self, own: _Call, mine: Turn) -> None:
        while not own.ended:
            if forks.ongoing and not forks.is_waited_for():
                forks.wait()
            with self._in_use:
                self._user = mine[2]
                # Looked at while the connection is in use: a fork looks in the other order, so one of the two sees the other.
                if forks.ongoing and not forks.is_waited_for():
                    continue
                calls = {own: None}
                # A signal handler's exception, which only the main thread meets, could not be told from one of another thread's
                # work: it runs none of it.
                is_main = mine[2] == threading.main_thread().ident
                while self._queue and not (is_main and _is_wanted(self._queue[0])):
                    other = self._queue.popleft()
                    if _is_wanted(other):
                        calls[other] = None
                ended: list[object] = []
                for call in calls:
                    call.error, call.ended = None, ended
                connection = None
                try:
                    connection = (self.cursor or self._open()).connection
                    with connection:  # unless the transaction is committed, this rolls it back: nothing can come between
                        try:
                            connection.execute("BEGIN IMMEDIATE")
                        except sqlite3.OperationalError as error:
                            if not is_busy(error):
                                raise
                            self._when_free(partial(connection.execute, "BEGIN IMMEDIATE"))
                        if len(calls) == 1:
                            own.result = own.work(connection, *own.args, **own.kwargs)
                        else:
                            for call in calls:
                                if call.waiting.locked():
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
                self._user = 0

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

    def _open(self) -> sqlite3.Cursor:
        connection = self._connect()
        connection.execute("PRAGMA busy_timeout = 0")
        self.cursor = cursor = connection.cursor()
        return cursor

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


def _is_wanted(call: _Call) -> bool:
    return not call.ended and call.waiting.locked()
