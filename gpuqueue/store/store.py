"""Owns the store: one SQLite file, one method for each transaction; decides nothing that needs a hook or the clock.

Times are arguments in microseconds since 1970-01-01 UTC (`now_us`). Every write may raise StoreBusy, StoreFull or
another StoreError, and then has changed nothing; only what changes many jobs does it in several transactions.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from gpuqueue.domain.answers import Demand, Hold, Placement
from gpuqueue.domain.claim import Capacity
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.estimates import Lesson
from gpuqueue.domain.job import Cancellation, Ending, Event, Job, Lease, State
from gpuqueue.domain.outcomes import Completed, Ended, Outcome, Report, Rescue
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.domain.view import Pause
from gpuqueue.store.sqlite import (
    backends,
    claims,
    connections,
    estimates,
    events,
    jobs,
    many,
    migrate,
    outcomes,
    queries,
    services,
    workers,
)
from gpuqueue.store.sqlite import queues as queue_rows
from gpuqueue.store.sqlite.claims import ClaimRules
from gpuqueue.store.sqlite.jobs import NewJob
from gpuqueue.store.sqlite.readers import Readers
from gpuqueue.store.sqlite.writer import Result, Work, Writer
from gpuqueue.store.wakeups import Bell, runtime_dir

WRITE_TIMEOUT_S = 10.0
CHECKPOINT_PAGES = 4000  # past 16 MB a producer checkpoints itself, should no worker do it


class Store:
    """A queue's database file, opened; creates and upgrades it when needed.

    `patient` is for workers: they leave the write lock to producers. After a fork the child opens its own connections.
    Raises: NotADatabase, NewerSchema, StoreUnwritable, StoreBusy.
    """

    def __init__(
        self, path: Path, *, synchronous: str = "normal", patient: bool = False, write_timeout_s: float = WRITE_TIMEOUT_S
    ) -> None:
        self.path = path
        self._engine = connections.create(path, synchronous=synchronous)
        self._patient = patient
        self._write_timeout_s = write_timeout_s
        self.runtime_dir = runtime_dir(path)
        self._begin_process()
        with self.reading() as connection:
            migrate.ensure_schema(self._engine, connection, path)
        _stores.add(self)

    def _begin_process(self) -> None:
        self.bell = Bell(self.runtime_dir)
        self.writer = Writer(self._connect_writer, path=self.path, patient=self._patient, timeout_s=self._write_timeout_s)
        self._readers = Readers(lambda: connections.connect(self._engine))
        self._version_reader: sqlite3.Connection | None = None
        self._version_lock = threading.Lock()
        self._let_in: list[Callable[[], None]] = []  # what ends `keep_out`

    def _connect_writer(self) -> sqlite3.Connection:
        connection = connections.connect(self._engine)
        # A worker checkpoints in the background instead.
        connection.execute(f"PRAGMA wal_autocheckpoint = {0 if self._patient else CHECKPOINT_PAGES}")
        return connection

    def close(self) -> None:
        """Close the connections; the store cannot be used afterwards."""
        self.writer.close()
        self.bell.close()
        self._readers.close()
        with self._version_lock:
            if self._version_reader is not None:
                self._version_reader.close()
                self._version_reader = None
        self._engine.dispose()

    def __del__(self) -> None:
        with suppress(Exception), _ending:  # a queue object that nobody closed, or one whose opening failed
            self.close()

    def keep_out(self, timeout_s: float) -> None:
        """Let no thread be at work in SQLite here until `let_in`, or until one was not done in time."""
        give_up_s = time.monotonic() + timeout_s
        if self.writer.keep_out(timeout_s):
            self._let_in.append(self.writer.let_in)
        self._let_in.append(self._readers.let_in)
        self._readers.keep_out(max(0.0, give_up_s - time.monotonic()))
        if self._version_lock.acquire(timeout=max(0.0, give_up_s - time.monotonic())):
            self._let_in.append(self._version_lock.release)

    def let_in(self) -> None:
        """Go on after `keep_out`."""
        while self._let_in:
            self._let_in.pop()()

    def file_id(self) -> tuple[int, int] | None:
        """Which file stands under the path now, None when there is none; another one is another queue."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def write(self, work: Work[Result]) -> Result:
        """Run work in one write transaction."""
        return self.writer.run(work)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for reading outside any transaction."""
        with connections.explained(self.path), self._readers.lend() as connection:
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside one read transaction: all that is read belongs to one moment."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            yield connection

    def data_version(self) -> int:
        """Return a number that differs from the last one when anybody has changed the file since; takes microseconds."""
        with connections.explained(self.path), self._version_lock:
            if self._version_reader is None:
                self._version_reader = connections.connect(self._engine)
            version: int = self._version_reader.execute("PRAGMA data_version").fetchone()[0]
            return version

    # --- jobs, for the client ---

    def enqueue(self, job: NewJob) -> int:
        """Store a job, wake the workers, and return its id."""
        statement, row, large_arguments = job
        if large_arguments is None:
            job_id = self.writer.insert(statement, row)
        else:
            job_id = self.write(lambda connection: jobs.insert_job(connection, job))
        self.bell.ring_workers()
        return job_id

    def enqueue_many(self, new: Sequence[NewJob]) -> list[int]:
        """Store all the jobs or none, and return their ids in order."""
        ids = self.write(lambda connection: [jobs.insert_job(connection, job) for job in new])
        self.bell.ring_workers()
        return ids

    def ensure_queue(self, name: str) -> None:
        """Make sure that the queue has a row."""
        self.write(lambda connection: jobs.ensure_queue(connection, name))

    def cancel(self, job_id: int, *, now_us: int) -> State:
        """Cancel a waiting job at once and ask a running one to stop; returns the state before. Raises: UnknownJob."""
        before = self.write(lambda connection: jobs.cancel(connection, job_id, now_us=now_us))
        self.bell.ring_waiters([job_id])
        self.bell.ring_workers()
        return before

    def retry(self, job_id: int, *, now_us: int) -> None:
        """Make a job available again. Raises: UnknownJob, StateError."""
        self.write(lambda connection: jobs.retry(connection, job_id, now_us=now_us))
        self.bell.ring_workers()

    def retry_failed(self, queue: str | None, *, now_us: int) -> int:
        """Make all discarded jobs, of one queue or of all, available again; returns how many."""
        return many.retry_failed(self, queue, now_us=now_us)

    def cancel_all(self, queue: str, *, now_us: int) -> Cancellation:
        """Cancel all waiting jobs of a queue and ask the running ones to stop."""
        return many.cancel_all(self, queue, now_us=now_us)

    def move_due(self, *, now_us: int) -> None:
        """Make jobs available whose time has come, and discard those whose time to be useful has passed."""
        self._ring_for(self.write(lambda connection: jobs.move_due(connection, now_us=now_us)))

    def refuse_waiting(self, queue: str, *, message: str, now_us: int) -> list[int]:
        """Discard a queue's available jobs because its backend is away; returns their ids."""
        return self._ring_for(
            self.write(lambda connection: jobs.refuse_waiting(connection, queue, message=message, now_us=now_us))
        )

    def refuse_one(self, job_id: int, *, message: str, now_us: int) -> bool:
        """Discard one job, if it still waits, because nobody can run it; returns whether it did."""
        refused = self.write(lambda connection: jobs.refuse_one(connection, job_id, message=message, now_us=now_us))
        self.bell.ring_waiters([job_id])
        return refused

    def pause(self, queue: str, pause: Pause) -> None:
        """Pause a queue; no job of it is claimed after this returns."""
        self.write(lambda connection: queue_rows.pause(connection, queue, pause))
        self.bell.ring_workers()

    def resume(self, queue: str, *, by: str, now_us: int) -> bool:
        """Lift a manual pause; returns whether there was one."""
        was_paused = self.write(lambda connection: queue_rows.resume(connection, queue, by=by, now_us=now_us))
        self.bell.ring_workers()
        return was_paused

    def prune_all(self, state: State, *, before_us: int) -> int:
        """Delete all old finished jobs of a state; returns how many."""
        return many.prune(self, state, before_us=before_us)

    def prune(self, state: State, *, before_us: int, limit: int = 1000) -> int:
        """Delete up to `limit` old finished jobs of a state; returns how many."""
        return self.write(lambda connection: jobs.prune(connection, state, before_us=before_us, limit=limit))

    # --- attempts, for the worker ---

    def finish_and_claim(
        self,
        ended: Sequence[Outcome],
        *,
        worker_id: str,
        queues: Sequence[QueueSettings],
        rules: ClaimRules,
        capacity: Capacity,
        now_us: int,
    ) -> tuple[list[Lease], list[Lease]]:
        """Write how attempts ended and claim jobs of queues without a GPU; returns (late leases, new leases).

        A late lease was rescued meanwhile; nothing was changed for it.
        """

        def work(connection: sqlite3.Connection) -> tuple[list[Lease], list[Lease]]:
            late = outcomes.finish(connection, ended, now_us=now_us) if ended else []
            if not queues or not (capacity.threads or capacity.coroutines):
                return late, []
            claimed = claims.claim(connection, worker_id=worker_id, queues=queues, rules=rules, capacity=capacity, now_us=now_us)
            return late, claimed

        late, leases = self.write(work)
        if ended:
            self.bell.ring_waiters(outcome.lease.job_id for outcome in ended)
            if any(not isinstance(outcome, Completed | Ended) for outcome in ended):
                self.bell.ring_workers()
        return late, leases

    def finish(self, ended: Sequence[Outcome], *, now_us: int) -> list[Lease]:
        """Write how attempts ended; returns the leases that were lost, for which nothing was changed."""
        return self.finish_and_claim(ended, worker_id="", queues=(), rules=ClaimRules(), capacity=Capacity(0), now_us=now_us)[0]

    def claim(
        self, *, worker_id: str, queues: Sequence[QueueSettings], rules: ClaimRules, capacity: Capacity, now_us: int
    ) -> list[Lease]:
        """Claim jobs of queues without a GPU, as many as there is room for."""
        return self.finish_and_claim((), worker_id=worker_id, queues=queues, rules=rules, capacity=capacity, now_us=now_us)[1]

    def claim_placed(
        self,
        candidate: Job,
        placement: Placement,
        *,
        worker_id: str,
        queue: QueueSettings,
        device: DeviceSettings,
        rules: ClaimRules,
        preemptible: bool = False,
        now_us: int,
    ) -> Lease | None:
        """Claim one job for a device and reserve the memory; None when it is no longer possible."""
        return self.write(
            lambda connection: claims.claim_placed(
                connection,
                candidate,
                placement,
                worker_id=worker_id,
                queue=queue,
                device=device,
                rules=rules,
                preemptible=preemptible,
                now_us=now_us,
            )
        )

    def request_preemption(self, job_id: int, lease: int) -> bool:
        """Ask a running attempt to make room; returns False when it has ended, or was asked already."""
        asked = self.write(lambda connection: outcomes.request_preemption(connection, job_id, lease))
        if asked:
            self.bell.ring_workers()
        return asked

    def release_device(self, job_id: int, lease: int) -> bool:
        """Free the device after the verified clean-up of an ended attempt; returns False when the lease was lost."""
        released = self.write(lambda connection: outcomes.release_device(connection, job_id, lease))
        self.bell.ring_workers()
        return released

    def report(self, reports: Sequence[Report]) -> None:
        """Write what running attempts say: output, log lines, progress; what a lost lease says is dropped."""
        self.write(lambda connection: outcomes.report(connection, reports))
        self.bell.ring_waiters({item.job_id for item in reports})

    def set_demands(self, demands: Sequence[tuple[int, Demand]], *, largest_bytes: int) -> None:
        """Write what waiting GPU jobs need."""
        self.write(lambda connection: jobs.set_demands(connection, demands, largest_bytes=largest_bytes))

    def forget_demand(self, job_id: int) -> None:
        """Let a waiting job be sized again."""
        self.write(lambda connection: jobs.forget_demand(connection, job_id))

    def forget_demands_of(self, model: str | None) -> None:
        """Let the waiting jobs of a model, or of all, be sized again."""
        self.write(lambda connection: jobs.forget_demands_of(connection, model))
        self.bell.ring_workers()

    # --- workers ---

    def accept_configuration(
        self, *, digest: str, settings: Mapping[str, Any], force: bool, now_us: int
    ) -> Mapping[str, Any] | None:
        """Make these the shared settings; returns the others' when a live worker runs with different ones, else None."""
        return self.write(
            lambda connection: workers.accept_configuration(
                connection, digest=digest, settings=settings, force=force, now_us=now_us
            )
        )

    def register_worker(
        self, worker_id: str, *, host: str, pid: int, queues: tuple[str, ...] | None, digest: str, expires_at_us: int, now_us: int
    ) -> bool:
        """Add a live worker; returns False when the shared settings are not, or no longer, those of its digest."""
        return self.write(
            lambda connection: workers.register(
                connection,
                worker_id,
                host=host,
                pid=pid,
                queues=queues,
                digest=digest,
                runtime_dir=str(self.runtime_dir),
                expires_at_us=expires_at_us,
                now_us=now_us,
            )
        )

    def extend(self, worker_id: str, *, expires_at_us: int) -> bool:
        """Extend a worker's lease on all that it runs; returns False when it was rescued and owns nothing any more."""
        return self.write(lambda connection: workers.extend(connection, worker_id, expires_at_us=expires_at_us))

    def unregister_worker(self, worker_id: str, *, now_us: int) -> None:
        """Remove a worker that ended in good order."""
        self.write(lambda connection: workers.unregister(connection, worker_id, now_us=now_us))

    def rescue(
        self,
        dead_worker: str,
        *,
        by_worker: str,
        executing: Collection[int] | None,
        proof: str,
        max_crashes: int,
        now_us: int,
    ) -> Rescue:
        """Take back what a dead worker held."""
        found = self.write(
            lambda connection: outcomes.rescue(
                connection,
                dead_worker,
                by_worker=by_worker,
                executing=executing,
                proof=proof,
                max_crashes=max_crashes,
                now_us=now_us,
            )
        )
        self.bell.ring_workers()
        return found

    def note_holds(self, holds: Mapping[str, tuple[Hold, ...]], *, now_us: int) -> None:
        """Record which queues began or ceased to be held."""
        self.write(lambda connection: queue_rows.note_holds(connection, holds, now_us=now_us))

    def publish_holds(self, worker_id: str, holds: Mapping[str, Sequence[Hold]]) -> None:
        """Write what a worker's own plugins hold, for processes that do not have them."""
        self.write(lambda connection: workers.publish_holds(connection, worker_id, holds))

    def backend_lost(self, name: str, *, error: str, probe_every_s: float, longest_s: float, now_us: int) -> datetime | None:
        """Open a backend's breaker; returns when it is asked again where that is news, None when it was open already."""
        retry_at = self.write(
            lambda connection: backends.backend_lost(
                connection, name, error=error, probe_every_s=probe_every_s, longest_s=longest_s, now_us=now_us
            )
        )
        self.bell.ring_workers()
        return retry_at

    def backend_answered(self, name: str, *, worked: bool, now_us: int) -> bool:
        """Close a backend's breaker and, when it was open, wake what waited for it; returns whether it was open."""

        def work(connection: sqlite3.Connection) -> bool:
            was_open = backends.backend_answered(connection, name, worked=worked, now_us=now_us)
            if was_open:
                jobs.promote_waiting_for(connection, name)
            return was_open

        was_open = self.write(work)
        if was_open:
            self.bell.ring_workers()
        return was_open

    def note_models(self, backend: str, models: Mapping[str, int]) -> None:
        """Write which models a backend has on its disk: {name: bytes}."""
        self.write(lambda connection: backends.note_models(connection, backend, models))

    def publish_reading(
        self, device: str, *, reading: Reading | None, residents: tuple[Resident, ...] | None, now_us: int
    ) -> str | None:
        """Write what a device was seen to be; returns the event that this made known: device_lost, device_recovered or none."""
        return self.write(lambda connection: backends.publish_reading(connection, device, reading, residents, now_us=now_us))

    def learn(self, lessons: Sequence[Lesson], *, now_us: int) -> None:
        """Fold observations of jobs into the estimates."""
        self.write(lambda connection: estimates.learn(connection, lessons, now_us=now_us))

    # --- events and upkeep ---

    def add_follower(self, name: str) -> bool:
        """Register a reader of all events from now on; returns whether it is new."""
        return self.write(lambda connection: events.add_follower(connection, name))

    def remove_follower(self, name: str) -> None:
        """Forget a reader of events."""
        self.write(lambda connection: events.remove_follower(connection, name))

    def take_events(self, follower: str, *, limit: int = 200) -> list[Event]:
        """Return the follower's next events, once."""
        return self.write(lambda connection: events.take(connection, follower, limit=limit))

    def advance_follower(self, name: str, event_id: int) -> None:
        """Let a follower pass the events up to this one."""
        self.write(lambda connection: events.advance(connection, name, event_id))

    def prune_events(self, *, before_us: int, forget_before_us: int = 0, limit: int = 5000) -> int:
        """Delete old events that every follower has read, and forget followers that never come back; returns how many."""
        return self.write(
            lambda connection: events.prune(connection, before_us=before_us, forget_before_us=forget_before_us, limit=limit)
        )

    # --- services ---

    def take_service(self, name: str, worker_id: str, *, expires_at_us: int, now_us: int) -> int | None:
        """Begin what only one worker does; returns the new term, None while another worker does it."""
        with self.reading() as connection:
            if services.is_held(connection, name, by_other_than=worker_id, now_us=now_us):
                return None
        return self.write(
            lambda connection: services.take(connection, name, worker_id, expires_at_us=expires_at_us, now_us=now_us)
        )

    def extend_service(self, name: str, term: int, *, expires_at_us: int) -> bool:
        """Go on with a service; returns False when another worker took it over."""
        return self.write(lambda connection: services.extend(connection, name, term, expires_at_us=expires_at_us))

    def release_service(self, name: str, term: int) -> None:
        """Leave a service to other workers."""
        self.write(lambda connection: services.release(connection, name, term))

    def note_service(self, name: str, term: int, status: Mapping[str, Any], *, now_us: int) -> bool:
        """Write what a service says of itself; returns False when another worker took it over."""
        return self.write(lambda connection: services.note(connection, name, term, status, now_us=now_us))

    def checkpoint(self) -> None:
        """Copy what it can of the write-ahead log into the file, without making anybody wait."""
        with self.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def wal_bytes(self) -> int:
        """Return the size of the write-ahead log."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    # --- reads ---

    def get_job(self, job_id: int) -> Job:
        """Return one job. Raises: UnknownJob."""
        with self.reading() as connection:
            return queries.get_job(connection, job_id)

    def get_ending(self, job_id: int) -> Ending:
        """Return how a job stands. Raises: UnknownJob."""
        with self.reading() as connection:
            return queries.get_ending(connection, job_id)

    def _ring_for(self, job_ids: list[int]) -> list[int]:
        self.bell.ring_waiters(job_ids)
        return job_ids


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _before_fork() -> None:
    # SQLite in the child takes over what locks this process has on a file, and would wait for ever for a write lock; so it
    # would for the mutexes of SQLite's own that another thread holds, be it for a moment.
    _ending.acquire()
    for store in list(_stores):
        store.keep_out(LONGEST_WAIT_S)
        _kept_out.append(store)


def _after_fork_in_parent() -> None:
    while _kept_out:
        _kept_out.pop().let_in()
    _ending.release()


def _after_fork_in_child() -> None:
    _kept_out.clear()
    _ending.release()
    # The parent's connections are left alone: closing them here would drop the parent's file locks.
    for store in list(_stores):
        _inherited.append((store.writer, store._readers, store._version_reader))
        store._begin_process()


LONGEST_WAIT_S = 2.0  # of a fork for the other threads at each file
_ending = threading.RLock()  # held where garbage is collected, in any thread, and while this process forks
_kept_out: list[Store] = []
_inherited: list[Any] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
