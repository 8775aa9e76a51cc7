"""What the store needs of a database: the contract of an engine. Each method that writes is one transaction.

**Exactness.** Limits, pauses and lease numbers hold at every commit, whatever processes do at once. A claim that begins after
an enqueue, a resume or a retry has returned sees it; of two that run at once either may count as first, so an enqueue takes
no lock of the claim's. SQLite has one writer, whose lock stands for everything below. Where many write, a claim locks first,
touches rows afterwards, and decides from what it reads then:

- concurrency and rate: the queue, exclusively. Only a claim raises what they limit, so a finish, a rescue and the release of
  a device need no lock. A rate's moment never goes back: `now_us` may be older than the wait for the lock.
- pause: a claim shares the lock of a queue without a limit, `pause` takes it alone, and so nothing starts after it returned.
- yielding: no lock. What the queues that are yielded to have (paused, running, waiting, served) is read in one statement,
  after the jobs to take are locked; in two statements a job that starts in between is seen by neither.
- slots, models and budget: the device, exclusively; then its reservations are read.
- locks come in one order: queues, then the device, then jobs, then counters, each sorted by its key. An advisory lock for
  each queue and device serves as well as the lock of a row; one for all claims costs three to four times as much.

Rows that are locked (queues, devices, the configuration's) exist before a claim. The snapshot is taken after the locks, so
each statement sees what is committed then: a transaction that reads as of its begin decides from before the wait.

**Repeating.** A method depends on its arguments and the rows alone and has no effect outside its transaction, so an engine may
run it again after a deadlock or a serialisation failure. It takes data, never a callback; nobody is woken inside it. A change
that selects rows and then updates them repeats the condition in the update: another process may have moved them meanwhile.

**Errors.** A method that raises has changed nothing: StoreBusy (no lock in time; it may be called again), StoreFull, another
StoreError. Where the connection is lost during a commit an engine cannot know; it has to find its own work again by what the
rows carry (worker and lease number, time of finishing).

**Time** is an argument, `now_us`: microseconds since 1970-01-01 UTC, from the engine's own `now_us()`.

**Ids** are never given twice. They grow, but where many write they do not become visible in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
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
from gpuqueue.domain.view import Pause


class Statements(Protocol):
    """What runs an engine's statements: its own connection, or the one that a caller's transaction belongs to."""

    def execute(self, statement: str, values: Any = ..., /) -> Any: ...


class Jobs(Protocol):
    """Jobs outside an attempt."""

    def enqueue(self, job: NewJob, /) -> int:
        """Store a job in a queue that has a row; returns its id."""

    def enqueue_many(self, jobs: Sequence[NewJob], /) -> list[int]:
        """Store all the jobs or none; returns their ids in order."""

    def cancel(self, job_id: int, /, *, now_us: int) -> State:
        """Cancel a waiting job at once, ask a running one to stop, leave a finished one; returns the state before.

        Raises: UnknownJob.
        """

    def cancel_several(self, job_ids: Sequence[int], /, *, now_us: int) -> tuple[list[int], list[int]]:
        """The same for many; returns the ids of those that were (cancelled, asked to stop)."""

    def retry(self, job_id: int, /, *, now_us: int) -> None:
        """Make a discarded, cancelled or postponed job available again, its attempts and crashes counted anew.

        Raises: UnknownJob; StateError when it runs, waits already, or completed.
        """

    def retry_discarded(self, job_ids: Sequence[int], /, *, now_us: int) -> int:
        """The same for those of the jobs that are discarded; returns how many."""

    def move_due(self, *, now_us: int) -> list[int]:
        """Make available what is due, and discard what has expired, some hundred jobs at most.

        A job's due time is its place in its queue. Returns: the ids of the expired.
        """

    def refuse_waiting(self, queue: str, /, *, message: str, now_us: int) -> list[int]:
        """Discard available jobs of a queue with the code `unavailable`, some hundred at most; returns their ids."""

    def refuse_one(self, job_id: int, /, *, message: str, now_us: int) -> bool:
        """Discard one waiting job with the code `unavailable`; returns whether it still waited."""

    def set_demands(self, demands: Iterable[tuple[int, Demand]], /, *, largest_bytes: int) -> None:
        """Write what available jobs need of a device; what is larger than `largest_bytes` never stands before what fits."""

    def forget_demand(self, job_id: int, /) -> None:
        """Let a waiting job be sized again."""

    def forget_demands_of(self, model: str | None, /) -> None:
        """Let the available jobs of a model, or of all, be sized again."""

    def prune(self, state: State, /, *, before_us: int, limit: int) -> int:
        """Delete jobs of a finished state that finished before a time, with all that belongs to them; returns how many.

        Kept: the newest job of all, whose id is not given again, and a job whose device is not free yet.
        """


class Attempts(Protocol):
    """Claims, and what becomes of them. Every write names its lease: a late one changes nothing and says so."""

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
        has work. A queue's jobs are taken in their order: where the next one finds no capacity, those behind it wait too.
        Order: priority descending, then scheduled_at, then id, across all the queues.
        Each claim takes the job's next lease number.
        Returns: (late leases, for which nothing was changed; new leases, no more of a kind than `capacity` says).
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
        preemptible: bool,
        now_us: int,
    ) -> Lease | None:
        """Claim one job for a device and reserve the memory; `preemptible`: its attempt can be asked to make room.

        Eligible: still available with the demand that the placement was decided for, within its queue's pause, yielding,
        rate and concurrency, and within the device's slots, models and budget, counting every reservation there is.
        Returns: the lease, or None when any of this no longer holds.
        """

    def claim_job(self, job: Job, /, *, worker_id: str, now_us: int) -> Lease | None:
        """Claim one job that is as it was seen, whatever its queue allows; None when it has changed since."""

    def request_preemption(self, job_id: int, lease: int, /) -> bool:
        """Ask a running attempt to make room; returns False when it has ended, or was asked already."""

    def release_device(self, job_id: int, lease: int, /) -> bool:
        """Free the device of an ended attempt, after its clean-up; returns False when the lease was lost."""

    def report(self, reports: Sequence[Report], /) -> None:
        """Write what running attempts say: output, log lines, progress; what a lost lease says is dropped."""

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

        Running jobs become available, their attempts unspent. `executing` are the jobs that it executed when it died (None:
        not known, which counts all): each adds a crash, and at `max_crashes` the job is discarded.
        """


class Queues(Protocol):
    """Queues and what holds them."""

    def ensure(self, name: str, /) -> None:
        """Make sure that the queue has a row."""

    def pause(self, queue: str, pause: Pause, /) -> None:
        """Pause a queue by hand; no claim of it begins after this commits."""

    def resume(self, queue: str, /, *, by: str, now_us: int) -> bool:
        """Lift a manual pause; returns whether there was one that had not ended by itself."""

    def note_holds(self, holds: Mapping[str, tuple[Hold, ...]], /, *, now_us: int) -> None:
        """Write the events queue_held and queue_released for queues whose reasons changed since the last note."""


class Workers(Protocol):
    """Workers, and the settings that they share."""

    def accept_configuration(
        self, *, digest: str, settings: Mapping[str, Any], force: bool, now_us: int
    ) -> Mapping[str, Any] | None:
        """Make these settings the shared ones, unless a live worker runs with others; returns those others then, else None."""

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
        """Add a live worker; returns False when the shared settings are not, or no longer, those of its digest."""

    def extend(self, worker_id: str, /, *, expires_at_us: int) -> bool:
        """Extend a worker's lease on all that it runs; returns False when it was rescued and owns nothing any more."""

    def unregister(self, worker_id: str, /, *, now_us: int) -> None:
        """Remove a worker that ended in good order; what it may have left is rescued by its missing row."""

    def publish_holds(self, worker_id: str, holds: Mapping[str, Sequence[Hold]], /) -> None:
        """Write what a worker's own plugins hold, for processes that do not have them."""


class Backends(Protocol):
    """Backends and devices: who can be used, and what was seen."""

    def lost(self, name: str, /, *, error: str, probe_every_s: float, longest_s: float, now_us: int) -> datetime | None:
        """Open a backend's breaker, or keep it open; returns when it is asked again where it was closed, else None.

        The wait doubles with each outage since the last success, from probe_every_s to longest_s.
        """

    def answered(self, name: str, /, *, worked: bool, now_us: int) -> bool:
        """Close a backend's breaker and, when it was open, make available what waited for it; returns whether it was open.

        `worked` (a job succeeded on it) also forgets its outages.
        """

    def note_models(self, name: str, models: Mapping[str, int], /) -> None:
        """Write which models a backend has on its disk: {name: bytes}."""

    def publish_reading(
        self, device: str, /, *, reading: Reading | None, residents: tuple[Resident, ...] | None, now_us: int
    ) -> str | None:
        """Write what a device was seen to be; None leaves what was there.

        Returns: the event that this made known, device_lost or device_recovered, or None.
        """


class Services(Protocol):
    """What one worker of all does: the row is its lease."""

    def take(self, name: str, worker_id: str, /, *, expires_at_us: int, now_us: int) -> int | None:
        """Begin to do what the service does; returns the new term, None while another worker that lives does it."""

    def extend(self, name: str, term: int, /, *, expires_at_us: int) -> bool:
        """Go on; returns False when another worker took the service over."""

    def release(self, name: str, term: int, /) -> None:
        """Leave the service to others."""

    def note(self, name: str, term: int, status: Mapping[str, Any], /, *, now_us: int) -> bool:
        """Write what a service says of itself; returns False when another worker took it over."""


class Followers(Protocol):
    """Events, and who reads them. While there is a follower, every transition of a job writes one.

    Events are read in one order, and none appears before one that was read already: where ids become visible out of order, a
    reader waits for the transactions that may still write an earlier one.
    """

    def add(self, name: str, /) -> bool:
        """Register a reader of all events from now on; returns whether it is new."""

    def remove(self, name: str, /) -> None:
        """Forget a reader."""

    def take(self, name: str, /, *, limit: int) -> list[Event]:
        """Return a follower's next events, which no other process gets again."""

    def advance(self, name: str, event_id: int, /) -> None:
        """Let a follower pass the events up to this one; it never goes back."""

    def prune(self, *, before_us: int, forget_before_us: int = 0, limit: int) -> int:
        """Delete old events that every follower has read, never the newest; returns how many.

        A follower that left an event from before `forget_before_us` unread is forgotten.
        """


class Estimates(Protocol):
    """What was learned from jobs."""

    def learn(self, observations: Sequence[Observation], /, *, now_us: int) -> None:
        """Fold observations into what is believed."""


class Upkeep(Protocol):
    """The database itself."""

    def try_write(self) -> None:
        """Take whatever a write needs, and change nothing."""

    def checkpoint(self) -> None:
        """Tidy up, without making anybody wait."""

    def log_bytes(self) -> int:
        """Return the size of what `checkpoint` has not tidied up yet."""

    def empty(self) -> None:
        """Delete everything but the names of the queues: for tests."""


class Engine(Protocol):
    """One open database. Safe to use from many threads, and in a forked child once its hooks were called."""

    name: str  # what people call it: a file's path

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
        """Read: each question inside the block by itself, which costs less than a snapshot where there is one."""

    def snapshot(self) -> AbstractContextManager[Reads]:
        """Read: all that is read inside the block belongs to one moment."""

    def changed(self) -> Hashable:
        """Return a token that differs from the last one when anybody has changed the database since, and perhaps without."""

    def now_us(self) -> int:
        """Read the queue's time: of this process where the database is a file, of the server elsewhere."""

    def identity(self) -> Hashable:
        """Return what is equal while the name leads to the same database; None when it leads to none."""

    def quiesce(self, timeout_s: float) -> None:
        """Let no thread be at work in the database until `resume`, or until one was not done in time: before a fork.

        A thread that forks inside a read of its own waits for itself, and goes on after `timeout_s`.
        """

    def resume(self) -> None:
        """Go on after `quiesce`."""

    def begin_in_child(self) -> None:
        """Begin anew in a forked process, with connections of its own; the parent's are left alone."""

    def close(self) -> None:
        """Close the connections; the engine cannot be used afterwards."""
