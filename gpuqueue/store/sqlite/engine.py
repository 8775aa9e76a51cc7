"""Implements the engine contract for SQLite: each role maps its methods to functions that run in one transaction."""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import wraps
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.job import Lease, NewJob, State
from gpuqueue.domain.outcomes import Outcome
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.store import forks
from gpuqueue.store.resting import rest
from gpuqueue.store.sqlite import (
    backends,
    claims,
    connections,
    enqueueing,
    estimates,
    events,
    jobs,
    migrate,
    outcomes,
    queues,
    services,
    set_back,
    workers,
    write_ahead_log,
)
from gpuqueue.store.sqlite.enqueueing import INSERT_PLAIN_JOB
from gpuqueue.store.sqlite.own_file import OwnFile
from gpuqueue.store.sqlite.read_pool import ReadPool
from gpuqueue.store.sqlite.reads import SQLiteReads
from gpuqueue.store.sqlite.rows import INLINE_BYTES
from gpuqueue.store.sqlite.write_lock import EAGER_WAIT_S, when_free
from gpuqueue.store.sqlite.writer import Writer

BRIEF_WAIT_S = 0.25
READ_CACHE_KIB = 32_000  # the indexes of a million jobs
CHECKPOINT_PAGES = 4000  # past 16 MB a producer checkpoints by itself, in case no worker does
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
_inherited: list[object] = []


class _Handles(NamedTuple):
    writer: Writer
    read_pool: ReadPool
    version_pool: ReadPool


class SQLite:
    """A queue's open database file; created or upgraded if needed.

    `patient` is for workers, which leave the write lock to producers, and look for their file themselves.
    Raises: NotADatabase, NewerSchema, StoreUnwritable, StoreBusy.
    """

    def __init__(self, path: Path, *, synchronous: str, patient: bool, write_timeout_s: float, now_us: Callable[[], int]) -> None:
        self.path = path
        self.name = str(path)
        self.now_us = now_us
        self._engine = connections.create(path, synchronous=synchronous)
        self._patient = patient
        self._write_timeout_s = write_timeout_s
        self.jobs = _Jobs(self)
        self.attempts = _Attempts(self)
        self.queues = _Queues(self)
        self.workers = _Workers(self)
        self.backends = _Backends(self)
        self.services = _Services(self)
        self.followers = _Followers(self)
        self.estimates = _Estimates(self)
        self.upkeep = _Upkeep(self)
        self.own_file = OwnFile(path, looks_by_itself=not patient)  # before it is opened: it may be replaced meanwhile
        self._handles: dict[tuple[int, int], _Handles] = {}
        self._pid = 0
        self.begin_in_child()
        forks.watch(self)
        try:
            with self.lent() as connection:
                migrate.ensure_schema(self._engine, connection, path)
                self.own_file.look()
        except BaseException:
            self.close()
            raise

    def _make_handles(self) -> _Handles:
        writer = Writer(self._connect_writer, path=self.path, patient=self._patient, timeout_s=self._write_timeout_s)
        return _Handles(writer, ReadPool(self._connect_reader), ReadPool(self.connect))

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self.connect()
        # A worker checkpoints in the background instead.
        connection.execute(f"PRAGMA wal_autocheckpoint = {0 if self._patient else CHECKPOINT_PAGES}")
        return connection

    def _connect_reader(self) -> connections.Connection:
        connection = self.connect()
        # Memory is used only for what is read. The more connections a process has, the smaller the cache of each.
        connection.execute(f"PRAGMA cache_size = -{READ_CACHE_KIB // (self._read_pool.open_count + 1)}")
        return connection

    def connect(self) -> connections.Connection:
        """Open a connection that the caller closes; for this engine."""
        forks.refuse_inherited(self.path)
        return connections.connect(self._engine)

    def close(self) -> None:
        self.writer.close()
        self._read_pool.close()
        self._version_pool.close()
        self._engine.dispose()

    def close_if_free(self) -> None:
        self.writer.close_if_free()
        if not forks.ongoing:
            self._read_pool.close()
            self._version_pool.close()

    def begin_in_child(self) -> None:
        # The parent's handles are kept, even if the engine is gone: closing them here would let SQLite believe that nobody has
        # the file open. If the server forked without telling Python, several threads may come here at once: all get the same.
        _inherited.extend(self._handles.values())
        step = self._pid, os.getpid()
        handles = self._handles.setdefault(step, self._make_handles())
        self.writer, self._read_pool, self._version_pool = handles
        self._pid = step[1]

    def quiesce(self, give_up_s: float) -> str | None:
        left = [handle.quiesce(give_up_s) for handle in (self.writer, self._read_pool, self._version_pool)]
        return next(filter(None, left), None)

    def look(self) -> None:
        self.own_file.look()

    def on_replaced(self, tell: Callable[[], object]) -> None:
        self.own_file.tell_replaced = tell

    @contextmanager
    def lent(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection outside any transaction; for this engine and its tests."""
        if os.getpid() != self._pid:
            self.begin_in_child()
        with connections.explained(self.path), self._read_pool.lend() as connection:
            yield connection

    def reading(self) -> _Reading:
        if os.getpid() != self._pid:
            self.begin_in_child()
        if monotonic() >= self.own_file.due_s:
            self.own_file.look()
        return _Reading(self._read_pool, self.path)

    def snapshot(self) -> _Snapshot:
        if os.getpid() != self._pid:
            self.begin_in_child()
        if monotonic() >= self.own_file.due_s:
            self.own_file.look()
        return _Snapshot(self._read_pool, self.path)

    def changed(self) -> tuple[int, int]:
        if os.getpid() != self._pid:
            self.begin_in_child()
        if monotonic() >= self.own_file.due_s:
            self.own_file.look()
        # Versions of one connection only are comparable.
        with connections.explained(self.path), self._version_pool.lend() as connection:
            return connection.number, connection.execute("PRAGMA data_version").fetchone()[0]


class _Reading(SQLiteReads):
    """Reads over a connection that is lent for the duration of a block."""

    __slots__ = ("__weakref__", "_path", "_read_pool", "loan")

    def __init__(self, read_pool: ReadPool, path: Path) -> None:
        self.loan: weakref.ref[Any] | None = None
        self._read_pool = read_pool
        self._path = path

    def __enter__(self) -> Self:
        try:
            self.execute = self._read_pool.take(self).execute
        except sqlite3.Error as error:
            raise connections.explain(error, self._path) from error
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self._read_pool.give_back(self)
        except sqlite3.Error as broken:
            raise connections.explain(broken, self._path) from broken
        if isinstance(error, sqlite3.Error):
            raise connections.explain(error, self._path) from error


class _Snapshot(_Reading):
    """Like _Reading, with all reads as of one moment."""

    __slots__ = ()

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.execute("BEGIN")
        except sqlite3.Error as error:
            self.__exit__(None, error, None)
        return self


@contextmanager
def as_it_is(path: Path, *, patience_s: float) -> Iterator[SQLiteReads]:
    """Read an existing file, whatever its schema, without upgrading or changing it. Raises: StoreError."""
    with connections.read_only(path, patience_s=patience_s) as connection:
        connection.execute("BEGIN")
        yield SQLiteReads(connection)


class _Role:
    def __init__(self, engine: SQLite) -> None:
        self._engine = engine


def _transaction(
    work: Callable[Concatenate[sqlite3.Connection, Parameters], Returned],
) -> Callable[Concatenate[_Role, Parameters], Returned]:
    """Return a method that runs this function in one write transaction."""

    @wraps(work)
    def run(self: _Role, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        engine = self._engine
        if os.getpid() != engine._pid:
            engine.begin_in_child()
        if monotonic() >= engine.own_file.due_s:
            engine.own_file.look()
        return engine.writer.run(work, *args, **kwargs)

    return run


class _Jobs(_Role):
    def enqueue(self, job: NewJob, /) -> int:
        # Like `insert_jobs`, with fewer steps: every enqueue passes through here.
        engine = self._engine
        if os.getpid() != engine._pid:
            engine.begin_in_child()
        own_file = engine.own_file
        if monotonic() >= own_file.due_s:
            own_file.look()
        queue, task, arguments, enqueued_at_us, priority, max_attempts, extras = job
        if extras is None and len(arguments) <= INLINE_BYTES:
            row = (queue, task, arguments, enqueued_at_us, enqueued_at_us, priority, max_attempts)
            job_id = engine.writer.insert(INSERT_PLAIN_JOB, row)
            own_file.stored.append(job_id)
            return job_id
        return self.enqueue_many((job,))[0]

    def enqueue_many(self, jobs: Sequence[NewJob], /) -> list[int]:
        ids = self._insert_many(jobs)
        self._engine.own_file.stored += ids
        return ids

    _insert_many = _transaction(enqueueing.insert_jobs)
    cancel = _transaction(jobs.cancel)
    cancel_several = _transaction(jobs.cancel_several)
    retry = _transaction(jobs.retry)
    retry_discarded = _transaction(jobs.retry_discarded)
    move_due = _transaction(jobs.move_due)
    refuse_waiting = _transaction(jobs.refuse_waiting)
    refuse_one = _transaction(jobs.refuse_one)
    set_demands = _transaction(jobs.set_demands)
    forget_demands = _transaction(jobs.forget_demands)

    def prune(self, state: State, /, *, before_us: int, limit: int) -> int:
        pruned, is_cut = 0, True
        while is_cut and pruned < limit:
            began_s = monotonic()
            count, is_cut = self._prune(state, before_us=before_us, limit=limit - pruned)
            pruned += count
            if is_cut:
                rest(began_s)
        return pruned

    _prune = _transaction(jobs.prune)


class _Attempts(_Role):
    def finish_and_claim(
        self,
        ended: Sequence[Outcome],
        /,
        *,
        worker_id: str,
        queues: Sequence[QueueSettings],
        rules: ClaimRules,
        capacity: Capacity,
        now_us: int,
    ) -> tuple[list[Lease], list[Lease]]:
        late, claimed = self._engine.writer.run(
            claims.finish_and_claim,
            ended,
            worker_id=worker_id,
            queues=queues,
            rules=rules,
            capacity=capacity,
            now_us=now_us,
        )
        return late, [item.decoded() for item in claimed]

    finish = _transaction(outcomes.finish)
    claim_placed = _transaction(claims.claim_placed)
    claim_job = _transaction(claims.claim_job)
    request_preemption = _transaction(outcomes.request_preemption)
    note_unloaded = _transaction(outcomes.note_unloaded)
    release_device = _transaction(outcomes.release_device)
    report = _transaction(outcomes.report)
    rescue = _transaction(outcomes.rescue)


class _Queues(_Role):
    ensure = _transaction(jobs.ensure_queue)
    pause = _transaction(queues.pause)
    resume = _transaction(queues.resume)
    note_holds = _transaction(queues.note_holds)


class _Workers(_Role):
    def accept_configuration(
        self,
        *,
        digest: str,
        settings: Mapping[str, Any],
        force: bool,
        now_us: int,
        alive: Mapping[str, bool | None] = MappingProxyType({}),
    ) -> Mapping[str, Any] | None:
        while True:
            began_s = monotonic()
            theirs, is_done = self._accept(digest=digest, settings=settings, force=force, now_us=now_us, alive=alive)
            if is_done:
                return theirs
            rest(began_s)

    _accept = _transaction(workers.accept_configuration)

    def agree_on_runtime_base(self, host: str, uid: int, path: str, /, *, instead_of: str | None) -> str:
        # The writer would wait long for a transaction that the caller itself may have open.
        with connections.explained(self._engine.path), closing(self._engine.connect()) as connection:
            connection.execute("PRAGMA busy_timeout = 0")
            when_free(lambda: connection.execute("BEGIN IMMEDIATE"), wait_s=EAGER_WAIT_S, timeout_s=BRIEF_WAIT_S)
            agreed = workers.agree_on_runtime_base(connection, host, uid, path, instead_of=instead_of)
            connection.execute("COMMIT")
            return agreed

    register = _transaction(workers.register)
    extend = _transaction(workers.extend)
    unregister = _transaction(workers.unregister)
    publish_holds = _transaction(workers.publish_holds)


class _Backends(_Role):
    lost = _transaction(backends.lost)

    def answered(self, name: str, /, *, worked: bool, now_us: int) -> bool:
        began_s = monotonic()
        was_open, some_left = self._answered(name, worked=worked, now_us=now_us)
        while some_left:
            rest(began_s)
            began_s = monotonic()
            some_left = self._wake(name)
        return was_open

    _answered = _transaction(backends.answered)
    _wake = _transaction(backends.wake)
    note_models = _transaction(backends.note_models)
    publish_reading = _transaction(backends.publish_reading)


class _Services(_Role):
    def take(
        self, name: str, worker_id: str, /, *, silent: tuple[int, int] | None = None, expires_at_us: int, now_us: int
    ) -> int | None:
        with self._engine.lent() as connection:  # every worker asks every second; most calls need no write lock
            if services.is_held(connection, name, by_other_than=worker_id, silent=silent):
                return None
        return self._take(name, worker_id, silent=silent, expires_at_us=expires_at_us, now_us=now_us)

    _take = _transaction(services.take)
    extend = _transaction(services.extend)
    release = _transaction(services.release)
    note = _transaction(services.note)


class _Followers(_Role):
    add = _transaction(events.add_follower)
    remove = _transaction(events.remove_follower)
    take = _transaction(events.take)
    advance = _transaction(events.advance)
    prune = _transaction(events.prune)


class _Estimates(_Role):
    learn = _transaction(estimates.learn)


class _Upkeep(_Role):
    def try_write(self) -> None:
        self._engine.writer.run(_nothing)

    def checkpoint(self) -> None:
        with self._engine.lent() as connection:
            write_ahead_log.checkpoint(connection, self._engine.path)

    def log_bytes(self) -> int:
        return write_ahead_log.size(self._engine.path)

    def log_holders(self) -> list[int] | None:
        with self._engine.lent() as connection:
            return write_ahead_log.holders(connection, self._engine.path)

    set_back = _transaction(set_back.set_back)

    def empty(self) -> None:
        self._engine.writer.run(_empty)


def _nothing(_connection: sqlite3.Connection) -> None: ...


def _empty(connection: sqlite3.Connection) -> None:
    from gpuqueue.store.tables import metadata

    for table in metadata.sorted_tables:
        if table.name not in ("queues", "runtime_bases"):  # a queue object relies on these rows
            connection.execute(f"DELETE FROM {table.name}")
    names = [column.name for column in metadata.tables["queues"].columns if column.name != "name"]
    connection.execute(f"UPDATE queues SET {', '.join(f'{name} = NULL' for name in names)}")
