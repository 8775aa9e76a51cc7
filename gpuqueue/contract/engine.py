"""Defines the contract of an engine: the operations that the store needs from a database.

Each writing method is one transaction, unless it says otherwise. No transaction does more because there are more rows: only what
its caller gives it may be many.

**Exactness.** Limits, pauses and lease numbers hold at every commit, however processes interleave. A claim that starts after an
enqueue, a resume or a retry has returned sees it. If the two overlap, either may count as first, so an enqueue takes none of the
claim's locks. SQLite has a single writer, and its lock replaces all locks below. With several writers, a claim takes its locks
first, touches rows afterwards, and decides from what it reads then:

- concurrency and rate: lock the queue exclusively. Only a claim raises the limited values, so a finish, a rescue and the release
  of a device need no lock. A rate's time never moves back: `now_us` may be older than the wait for the lock.
- pause: a claim takes a shared lock on a queue without a limit, `pause` an exclusive one, so nothing starts after it returned.
- yielding: no lock. The state of the queues yielded to (paused, running, waiting, served) is read in one statement, after the
  jobs to claim are locked; with two statements, neither would see a job that starts in between.
- slots, models, parallel requests and budget: lock the device exclusively, then read its reservations.
- lock order: queues, then the device, then jobs, then counters, each sorted by its key. An advisory lock per queue and device
  works as well as a row lock; a single lock for all claims costs three to four times as much.

Locked rows (queues, devices, the configuration) exist before a claim. The snapshot is taken after the locks, so each statement
sees what is committed by then; a transaction that reads as of its start would decide from the state before the wait.

**Repeating.** A method depends only on its arguments and the rows and has no effect outside its transaction, so an engine may
run it again after a deadlock or a serialisation failure. It takes data, never a callback, and wakes no other process. A change
that selects rows and then updates them repeats the condition in the update: another process may have moved them meanwhile.

**Errors.** A method that raises has changed nothing: StoreBusy (no lock in time; it may be called again), StoreFull, another
StoreError. If the connection is lost during a commit, an engine cannot know the outcome; it must recognise its own work by what
the rows carry (worker and lease number, finish time).

**Time** is an argument, `now_us`: microseconds since 1970-01-01 UTC, from the engine's own `now_us()`.

**Ids** are never reused. They increase, but with several writers they may become visible out of order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from gpuqueue.contract.reads import Reads
from gpuqueue.domain.answers import Demand, Hold, Placement
from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.estimates import Observation
from gpuqueue.domain.job import (
    Event,
    Job,
    Lease,
    NewJob,
    State,
)
from gpuqueue.domain.outcomes import Outcome, Report, Rescue
from gpuqueue.domain.settings import DeviceSettings, QueueSettings
from gpuqueue.domain.view import PartInfo, Pause


class Statements(Protocol):
    """Runs an engine's statements: its own connection, or that of a caller's transaction."""

    def execute(self, statement: str, values: Any = ..., /) -> Any: ...


class Jobs(Protocol):
    """Jobs outside an attempt."""

    def enqueue(self, job: NewJob, /) -> int:
        """Store a job in a queue that already has a row; returns its id."""

    def enqueue_many(self, jobs: Sequence[NewJob], /) -> list[int]:
        """Store all the jobs or none; returns their ids in order."""

    def cancel(self, job_id: int, /, *, now_us: int) -> State:
        """Cancel a waiting job immediately, ask a running one to stop, leave a finished one; returns the previous state.

        Raises: UnknownJob.
        """

    def cancel_several(self, job_ids: Sequence[int], /, *, now_us: int) -> tuple[list[int], list[int]]:
        """Do the same for many; returns the ids of (cancelled, asked to stop)."""

    def retry(self, job_id: int, /, *, now_us: int) -> None:
        """Make a discarded, cancelled or postponed job available again, with its attempts and crashes reset.

        Raises: UnknownJob; StateError if it is running, already available, or completed.
        """

    def retry_discarded(self, job_ids: Sequence[int], /, *, now_us: int) -> int:
        """Do the same for the discarded ones among these jobs; returns how many."""

    def move_due(self, *, now_us: int) -> list[int]:
        """Make due jobs available, and discard expired ones, a few hundred at most.

        A job's due time is its place in its queue. Returns: the ids of the expired ones.
        """

    def refuse_waiting(self, queue: str, /, *, message: str, now_us: int) -> list[int]:
        """Discard available jobs of a queue with the code `unavailable`, a few hundred at most; returns their ids."""

    def refuse_one(self, job_id: int, /, *, message: str, now_us: int) -> bool:
        """Discard one waiting job with the code `unavailable`; returns whether it was still waiting."""

    def set_demands(self, demands: Iterable[tuple[int, Demand]], /, *, largest_bytes: int) -> None:
        """Record the device requirements of available jobs; one larger than `largest_bytes` never blocks jobs that fit."""

    def forget_demands(self, job_ids: Sequence[int], /) -> None:
        """Forget the demands of the waiting ones among these jobs, so that they are determined again."""

    def prune(self, state: State, /, *, before_us: int, limit: int) -> int:
        """Delete jobs in a finished state that finished before a given time, with all their data; returns how many.

        Kept: the newest job of all, so that its id is not reused, and jobs that still have a device reserved.
        Atomic: each job's row goes last; a job with very many rows loses them over several transactions.
        """


class Attempts(Protocol):
    """Claims, and the attempts that they start. Every write names its lease: a late one changes nothing and is reported."""

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
        """Write how attempts ended, and claim jobs of queues without a device, in this order in one transaction.

        Eligible: due, in `queues`, and within each queue's pause, rate and concurrency, while no queue that it yields to
        has work; nothing for a worker without a row. A queue's jobs are taken in order: if the next one finds no capacity,
        those behind it wait too.
        Order: the suspects that `capacity` names, as far as fewer than MOST_SUSPECTS without a device are running; then by
        priority descending, then scheduled_at, then id, across all the queues. No other suspect is claimed.
        Each claim takes the job's next lease number.
        Arguments are decoded after the transaction; those that cannot be are the lease's `arguments_error`.
        Returns: (late leases, for which nothing was changed; new leases, within `capacity`).
        """

    def finish(self, ended: Sequence[Outcome], /, *, now_us: int) -> list[Lease]:
        """Write how attempts ended; returns the late leases. A device stays reserved until `release_device`."""

    def claim_placed(
        self,
        candidate: Job,
        placement: Placement,
        /,
        *,
        worker_id: str,
        queue: QueueSettings,
        device: DeviceSettings,
        rules: ClaimRules,
        preemptible: bool = False,
        continues: bool = False,
        passed: int | None = None,
        now_us: int,
    ) -> Lease | None:
        """Claim one job for a device and reserve the memory.

        `preemptible`: its attempt can be preempted; `continues`: a later one then continues its output; `passed`: the job that
        it starts before, because its model is loaded.

        Eligible: still available with the demand that the placement was decided for, within its queue's pause, yielding,
        rate and concurrency, and within the device's slots, models and budget and its model's parallel requests, counting every
        reservation (`gpuqueue.domain.room.lack`); nothing for a worker without a row.
        Returns: the lease, or None if any of this no longer holds.
        """

    def claim_job(self, job: Job, /, *, worker_id: str, now_us: int) -> Lease | None:
        """Claim one job if it has not changed since it was read, regardless of limits and workers; None if it has."""

    def request_preemption(self, job_id: int, lease: int, /) -> bool:
        """Ask a running attempt to stop to free memory; returns False if it has ended or was already asked."""

    def note_unloaded(self, job_id: int, lease: int, held_bytes: int, /) -> bool:
        """Note that an ended attempt's model was unloaded: until `release_device`, only its memory is taken.

        That is what it had reserved, or `held_bytes` if it had more. Returns False if the lease was lost.
        """

    def release_device(self, job_id: int, lease: int, /) -> bool:
        """Release the device of an ended attempt, after its clean-up; returns False if the lease was lost."""

    def report(self, reports: Sequence[Report], /) -> None:
        """Write the reports of running attempts: output, log lines, progress; reports under a lost lease are dropped."""

    def rescue(
        self,
        dead_worker: str,
        /,
        *,
        by_worker: str,
        executing: Collection[int] | None,
        proof: str,
        max_crashes: int,
        now_us: int,
    ) -> Rescue:
        """Take back everything that a dead worker held, under new lease numbers.

        Running jobs become available, their attempts unspent. `executing` are the jobs that ran in the worker's own process
        when it died, None if that is not known: then all may have. Each of them becomes a suspect, which stays one until an
        attempt of it ends by itself. One that was a suspect already ran there alone (if it is not known: was the only job), so
        it has crashed once more, and at `max_crashes` it is discarded.
        """


class Queues(Protocol):
    """Queues and their holds."""

    def ensure(self, name: str, /) -> None:
        """Ensure that the queue has a row."""

    def pause(self, queue: str, pause: Pause, /) -> None:
        """Pause a queue manually; no job of it is claimed after this commits."""

    def resume(self, queue: str, /, *, by: str, now_us: int) -> bool:
        """End a manual pause; returns whether there was one that had not expired."""

    def note_holds(self, holds: Mapping[str, tuple[Hold, ...]], /, *, now_us: int) -> None:
        """Write the events queue_held and queue_released for queues with reasons that changed since the last call."""


class Workers(Protocol):
    """Workers and their shared settings."""

    def accept_configuration(
        self,
        *,
        digest: str,
        settings: Mapping[str, Any],
        force: bool,
        now_us: int,
        alive: Mapping[str, bool | None] = ...,
    ) -> Mapping[str, Any] | None:
        """Make these settings the shared ones, unless a live worker runs with others; then return those, else None.

        A worker lives until its lease ends, unless `alive` knows better: {worker: whether it does, None if not known}.
        New settings first make the demands of all jobs unknown, over several transactions.
        """

    def agree_on_runtime_base(self, host: str, uid: int, path: str, /, *, instead_of: str | None) -> str:
        """Make this the folder for the sockets of a user's processes on a host, if it still is `instead_of`.

        It is called while a queue is opened, so it waits for others only briefly.
        Returns: the folder that it is now. Raises: StoreBusy.
        """

    def register(
        self,
        worker_id: str,
        /,
        *,
        host: str,
        pid: int,
        queues: tuple[str, ...] | None,
        digest: str,
        runtime_dir: str,
        expires_at_us: int,
        now_us: int,
    ) -> bool:
        """Add a live worker, with a lease from now to `expires_at_us`.

        Returns False if the shared settings do not (or no longer) match its digest.
        """

    def extend(self, worker_id: str, /, *, expires_at_us: int, parts: Sequence[PartInfo] = ()) -> bool:
        """Extend a worker's lease on everything it runs, and publish how its parts are.

        This is the worker's sign of life, by which others know that it is not silent: `expires_at` always changes.
        Returns: False if it was rescued and owns nothing any more.
        """

    def unregister(self, worker_id: str, /, *, now_us: int) -> None:
        """Remove a worker that stopped cleanly; anything it left is rescued because its row is missing."""

    def publish_holds(self, worker_id: str, holds: Mapping[str, Sequence[Hold]], /) -> None:
        """Publish the holds by a worker's own plugins, for processes that do not have them."""


class Backends(Protocol):
    """Backends and devices: availability, models, readings."""

    def lost(self, name: str, /, *, error: str, probe_every_s: float, longest_s: float, now_us: int) -> datetime | None:
        """Open a backend's breaker, or keep it open; returns the time of the next check if it was closed, else None.

        The wait doubles with each outage since the last success, from probe_every_s to longest_s.
        """

    def answered(self, name: str, /, *, worked: bool, now_us: int) -> bool:
        """Close a backend's breaker; if it was open, make the jobs that waited for it available. Returns whether it was open.

        `worked` (a job succeeded on it) also forgets its outages. The jobs become available over several transactions; if they
        are interrupted, the backend's next answer continues.
        """

    def note_models(self, name: str, models: Mapping[str, int], /) -> None:
        """Record which models a backend has on its disk: {name: bytes}."""

    def publish_reading(
        self, device: str, /, *, reading: Reading | None, residents: tuple[Resident, ...] | None, now_us: int
    ) -> str | None:
        """Record a device's reading and loaded models; None keeps the old value.

        Returns: the recorded event, device_lost or device_recovered, or None.
        """


class Services(Protocol):
    """Singleton services, each run by one worker: the row is its lease."""

    def take(
        self, name: str, worker_id: str, /, *, silent: tuple[int, int] | None = None, expires_at_us: int, now_us: int
    ) -> int | None:
        """Take a service over; returns the new term, None while another worker runs it.

        A worker runs it while it has a row, unless `silent` is its lease: a term, and an end of it in microseconds, that the
        caller has seen unchanged for too long.
        """

    def extend(self, name: str, term: int, /, *, expires_at_us: int) -> bool:
        """Extend the lease on a service, whose end always changes; returns False if another worker took it over."""

    def release(self, name: str, term: int, /) -> None:
        """Give a service up, for another worker to take over."""

    def note(self, name: str, term: int, status: Mapping[str, Any], /, *, now_us: int) -> bool:
        """Write a service's reported status; returns False if another worker took it over."""


class Followers(Protocol):
    """Events and their followers. While there is a follower, every transition of a job writes an event.

    Events are read in one order, and none appears before one that was already read: if ids become visible out of order, a
    reader waits for the transactions that may still write an earlier one.
    """

    def add(self, name: str, /) -> bool:
        """Register a follower of all events from now on; returns whether it is new."""

    def remove(self, name: str, /) -> None:
        """Remove a follower."""

    def take(self, name: str, /, *, limit: int) -> list[Event]:
        """Return a follower's next events, and move it past them: no other process gets them."""

    def advance(self, name: str, event_id: int, /) -> None:
        """Move a follower past the events up to this one; it never moves back."""

    def prune(self, *, before_us: int, forget_before_us: int = 0, limit: int) -> int:
        """Delete old events that every follower has read, never the newest; returns how many.

        A follower with an unread event from before `forget_before_us` is removed.
        """


class Estimates(Protocol):
    """Estimates learned from jobs."""

    def learn(self, observations: Sequence[Observation], /, *, now_us: int) -> None:
        """Fold observations into the estimates."""


class Upkeep(Protocol):
    """The database itself."""

    def try_write(self) -> None:
        """Acquire what a write needs, and change nothing."""

    def checkpoint(self) -> None:
        """Run the database's own maintenance, without blocking other connections."""

    def log_bytes(self) -> int:
        """Return the size of what `checkpoint` has yet to process."""

    def set_back(self, *, now_us: int) -> None:
        """Move what was noted under a time after `now_us` to it: the clock was set back.

        A breaker or a manual pause keeps its length, a rate accrues from now on, and a running attempt began now.
        """

    def log_holders(self) -> list[int] | None:
        """Return the ids of the processes that keep `checkpoint` from its work; empty if none does, None if not known."""

    def empty(self) -> None:
        """Delete everything except the queues' names; for tests."""


class Engine(Protocol):
    """One open database. Safe to use from many threads, and in a forked child that was not born with it open."""

    name: str  # shown to people: a file's path

    @property
    def jobs(self) -> Jobs: ...
    @property
    def attempts(self) -> Attempts: ...
    @property
    def queues(self) -> Queues: ...
    @property
    def workers(self) -> Workers: ...
    @property
    def backends(self) -> Backends: ...
    @property
    def services(self) -> Services: ...
    @property
    def followers(self) -> Followers: ...
    @property
    def estimates(self) -> Estimates: ...
    @property
    def upkeep(self) -> Upkeep: ...

    def reading(self) -> AbstractContextManager[Reads]:
        """Return reads that are each as of their own moment; a single one costs less than in a snapshot."""

    def snapshot(self) -> AbstractContextManager[Reads]:
        """Return reads that are all as of one moment."""

    def changed(self) -> Hashable:
        """Return a token that differs from the last one if the database has changed since, and perhaps also without a change."""

    def now_us(self) -> int:
        """Return the current time: this process's clock if the database is a file, else the server's."""

    def look(self) -> None:
        """Look whether the name still leads to the open database. A client's engine looks by itself, at most each 100 ms.

        Raises: FileReplaced, which names the jobs that were stored since the last look.
        """

    def on_replaced(self, tell: Callable[[], object]) -> None:
        """Call `tell` once, before FileReplaced is raised, when another database has the name."""

    def quiesce(self, give_up_s: float) -> str | None:
        """Before a fork: wait until no thread uses the database, and close it. New uses wait for the end of the fork.

        Gives up at a time of `time.monotonic()`. Returns what could not be closed, as the subject of "had it open".
        """

    def begin_in_child(self) -> None:
        """Start afresh in a forked process, with new connections; the parent's are left alone."""

    def close(self) -> None:
        """Close the connections; the engine cannot be used afterwards."""

    def close_if_free(self) -> None:
        """Close the connections that no thread uses, and wait for none: a finalizer may run in the middle of anything."""
