"""Wraps an engine as the store: wakes the right processes after each transaction, changes many jobs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import Cancellation, Lease, NewJob, State
from gpuqueue.domain.outcomes import Completed, Ended, Outcome, Report
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.store.resting import rest
from gpuqueue.store.wakeups import Wakeups, is_usable, own_uid, runtime_base, runtime_dir

if TYPE_CHECKING:
    from gpuqueue.contract import engine as contract

AT_ONCE = 25  # maximum number of jobs that one of many transactions changes: a producer waits for a millisecond at most
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class Store:
    """An open queue.

    Each role has the methods of the engine's role (`contract/engine.py` describes those not defined here), and wakes the
    processes concerned by a transaction once it is committed.
    """

    def __init__(self, open_engine: Callable[[], contract.Engine]) -> None:
        # Opened here, after the store is created: garbage is finalised in order of creation, and `__del__` must close the
        # connections before they are finalised unclosed.
        self.engine = engine = open_engine()
        self.name = engine.name
        self.runtime_dir = _agreed_runtime_dir(engine)
        self.wakeups = wakeups = Wakeups(self.runtime_dir)
        self.reading = engine.reading
        self.snapshot = engine.snapshot
        self.changed = engine.changed
        self.now_us = engine.now_us
        self.look = engine.look
        self.on_replaced = engine.on_replaced
        self.jobs = Jobs(self, engine.jobs)
        self.attempts = Attempts(engine.attempts, wakeups)
        self.queues = Queues(engine.queues, wakeups)
        self.backends = Backends(engine.backends, wakeups)
        self.workers = engine.workers
        self.services = engine.services
        self.followers = engine.followers
        self.estimates = engine.estimates
        self.upkeep = engine.upkeep

    def close(self) -> None:
        """Close the connections; the store cannot be used afterwards."""
        self.engine.close()
        self.wakeups.close()

    def __del__(self) -> None:
        with suppress(Exception):  # a queue object that was not closed
            self.engine.close_if_free()
            self.wakeups.close()


def _agreed_runtime_dir(engine: contract.Engine) -> Path:
    """Return the folder for the sockets of this user's processes: the first one's choice, while it is there."""
    database, host, uid = Path(engine.name), socket.gethostname(), own_uid()
    with engine.reading() as reads:
        recorded = reads.runtime_base(host, uid)
    if recorded is not None and is_usable(recorded):
        return runtime_dir(database, Path(recorded))
    base = runtime_base()
    own = runtime_dir(database, base)
    if recorded != str(base):
        with suppress(StoreError):  # busy: other processes find this one by polling, and the next one that opens tries again
            agreed = engine.workers.agree_on_runtime_base(host, uid, str(base), instead_of=recorded)
            return own if agreed == str(base) else runtime_dir(database, Path(agreed))
    return own


def _waking(method: Callable[Parameters, Returned], wake: Callable[[Returned], object]) -> Callable[Parameters, Returned]:
    """Wrap a method, and call `wake` with what it returns."""

    @wraps(method)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        returned = method(*args, **kwargs)
        wake(returned)
        return returned

    return call


class Jobs:
    """Jobs outside an attempt."""

    def __init__(self, store: Store, engine: contract.Jobs) -> None:
        self._store = store
        self._engine = engine
        self._wakeups = wakeups = store.wakeups
        self.enqueue_many = _waking(engine.enqueue_many, lambda _: wakeups.ring_workers())
        self.retry = _waking(engine.retry, lambda _: wakeups.ring_workers())
        self.move_due = _waking(engine.move_due, wakeups.ring_waiters)
        self.refuse_waiting = _waking(engine.refuse_waiting, wakeups.ring_waiters)
        self.set_demands = engine.set_demands
        self.forget_demands = engine.forget_demands
        self.prune = engine.prune

    def enqueue(self, job: NewJob, /) -> int:
        """Store a job, wake the workers, and return its id."""
        job_id = self._engine.enqueue(job)
        self._wakeups.ring_workers()
        return job_id

    def cancel(self, job_id: int, /, *, now_us: int) -> State:
        """Cancel a waiting job immediately, or ask a running one to stop; returns the previous state. Raises: UnknownJob."""
        before = self._engine.cancel(job_id, now_us=now_us)
        self._wakeups.ring_waiters([job_id])
        self._wakeups.ring_workers()
        return before

    def refuse_one(self, job_id: int, /, *, message: str, now_us: int) -> bool:
        """Discard one job that cannot run, if it is still waiting; returns whether it was."""
        refused = self._engine.refuse_one(job_id, message=message, now_us=now_us)
        self._wakeups.ring_waiters([job_id])
        return refused

    # Each of these is many transactions. If interrupted, it has changed some of the jobs, each of them completely; calling it
    # again continues.

    def retry_failed(self, queue: str | None, /, *, now_us: int) -> int:
        """Make the currently discarded jobs of one queue, or of all, available again; returns how many."""
        with self._store.snapshot() as reads:
            ids = reads.discarded_ids(queue)
        retried = 0
        for some in _slices(ids):
            retried += self._engine.retry_discarded(some, now_us=now_us)
            self._wakeups.ring_workers()
        return retried

    def cancel_all(self, queue: str, /, *, now_us: int) -> Cancellation:
        """Cancel every waiting job of a queue, and ask the running ones to stop; jobs that are stored meanwhile stay.

        A worker may start one of them meanwhile, or give it back: its state is checked again when its turn comes.
        """
        with self._store.snapshot() as reads:
            ids = reads.unfinished_ids(queue)
        cancelled_count = asked_count = 0
        for some in _slices(ids):
            cancelled, asked = self._engine.cancel_several(some, now_us=now_us)
            cancelled_count += len(cancelled)
            asked_count += len(asked)
            self._wakeups.ring_waiters([*cancelled, *asked])
            if asked:
                self._wakeups.ring_workers()
        return Cancellation(cancelled_count, asked_count)

    def forget_demands_of(self, model: str | None, /) -> None:
        """Forget the demands of a model's available jobs, or of all, so that they are determined again."""
        with self._store.snapshot() as reads:
            ids = reads.sized(model)
        for some in _slices(ids):
            self._engine.forget_demands(some)
        self._wakeups.ring_workers()

    def prune_all(self, state: State, /, *, before_us: int) -> int:
        """Delete all finished jobs of a state that finished before a time; returns how many."""
        pruned = 0
        while True:
            began_s = time.monotonic()
            count = self._engine.prune(state, before_us=before_us, limit=AT_ONCE)
            pruned += count
            if count < AT_ONCE:
                return pruned
            rest(began_s)


class Attempts:
    """Claims, and the attempts that they start."""

    def __init__(self, engine: contract.Attempts, wakeups: Wakeups) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self.claim_placed = engine.claim_placed
        self.claim_job = engine.claim_job
        self.request_preemption = _waking(engine.request_preemption, lambda asked: wakeups.ring_workers() if asked else None)
        self.note_unloaded = _waking(engine.note_unloaded, lambda _: wakeups.ring_workers())
        self.release_device = _waking(engine.release_device, lambda _: wakeups.ring_workers())
        self.rescue = _waking(engine.rescue, lambda _: wakeups.ring_workers())

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
        """Write how attempts ended and claim jobs of queues without a device; returns (late leases, new leases)."""
        found = self._engine.finish_and_claim(
            ended, worker_id=worker_id, queues=queues, rules=rules, capacity=capacity, now_us=now_us
        )
        if ended:
            self._ring_for(ended)
        return found

    def finish(self, ended: Sequence[Outcome], /, *, now_us: int) -> list[Lease]:
        """Write how attempts ended; returns the late leases, for which nothing was changed."""
        late = self._engine.finish(ended, now_us=now_us)
        self._ring_for(ended)
        return late

    def report(self, reports: Sequence[Report], /) -> None:
        """Write the reports of running attempts: output, log lines, progress; reports under a lost lease are dropped."""
        self._engine.report(reports)
        self._wakeups.ring_waiters({item.job_id for item in reports})

    def _ring_for(self, ended: Sequence[Outcome]) -> None:
        self._wakeups.ring_waiters(outcome.lease.job_id for outcome in ended)
        # The job is available again, or will be; or another suspect may run now.
        if any(not isinstance(outcome, Completed | Ended) or outcome.lease.crashes is not None for outcome in ended):
            self._wakeups.ring_workers()


class Queues:
    """Queues and their holds."""

    def __init__(self, engine: contract.Queues, wakeups: Wakeups) -> None:
        self.ensure = engine.ensure
        self.pause = _waking(engine.pause, lambda _: wakeups.ring_workers())
        self.resume = _waking(engine.resume, lambda _: wakeups.ring_workers())
        self.note_holds = engine.note_holds


class Backends:
    """Backends and devices."""

    def __init__(self, engine: contract.Backends, wakeups: Wakeups) -> None:
        self.lost = _waking(engine.lost, lambda _: wakeups.ring_workers())
        self.answered = _waking(engine.answered, lambda was_open: wakeups.ring_workers() if was_open else None)
        self.note_models = engine.note_models
        self.publish_reading = engine.publish_reading


def _slices(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the ids in slices, with a pause between them."""
    for start in range(0, len(ids), AT_ONCE):
        began_s = time.monotonic()
        yield ids[start : start + AT_ONCE]
        if start + AT_ONCE < len(ids):
            rest(began_s)
