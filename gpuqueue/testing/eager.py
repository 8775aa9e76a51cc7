"""Runs a job at once where it is enqueued, for tests of applications; uses no device, and no policy that decides when.

with eager(gq):
    job = send_reminder.enqueue(rfa_id=7)
assert job.result() == "sent"
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, cast

from gpuqueue.client import callers_transaction
from gpuqueue.client.enqueueing import Enqueuer, Request, Stored
from gpuqueue.client.options import JobOptions
from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Task
from gpuqueue.config.shared import SharedSettings
from gpuqueue.contract.executor import AsyncExecutor, AttemptContext, AttemptInterrupted, Executor, is_async
from gpuqueue.contract.hookspecs import RegisterExecutorsDetails
from gpuqueue.decisions.policies import worker_policies
from gpuqueue.domain.endpoints import OLLAMA
from gpuqueue.domain.errors import UnknownJob, UsageError
from gpuqueue.domain.job import Lease, NewJob, State, lease_of
from gpuqueue.domain.models import VERBS
from gpuqueue.domain.outcomes import Ended, Postponed
from gpuqueue.executors.callables import CallableExecutor, CoroutineExecutor
from gpuqueue.store.store import Store
from gpuqueue.worker.attempt import EndedAttempt, Kind, Pipeline
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.site import Site

__all__ = ["eager", "run_at_once"]

ENDS_THE_ATTEMPT_ONLY = (Exception, AttemptInterrupted, asyncio.CancelledError, SystemExit)


@contextmanager
def eager(gq: GPUQueue, *, raises: bool = False) -> Iterator[None]:
    """Inside the block, a job that is enqueued through this queue object runs at once, in the calling thread.

    It is stored, run, judged and finished as by a worker, and has ended when `enqueue` returns. Nothing delays its start: no
    window, pause, limit or device holds it, and a failed attempt is retried without a wait. A job for a later time (`delay`,
    `at`) still waits, and so does one that snoozes: `travel` and `run_until_idle` run those. A job that is stored in a
    session's transaction runs after the commit.
    A failed job raises its error from `result()`, as in production; with `raises` also from `enqueue`.
    Raises: UsageError, from `enqueue`, if this process has no function or executor for the task.
    """
    before = gq._enqueuer
    run_at_once(gq, raises=raises)
    try:
        yield
    finally:
        gq._enqueuer = before


def run_at_once(gq: GPUQueue, *, raises: bool = False) -> Callable[[Iterable[int]], None]:
    """Make a queue object eager permanently; returns a function that runs jobs that are already stored."""
    run = _Runner(gq, raises=raises).run
    gq._enqueuer = _Eager(gq._enqueuer, run)
    return run


class _Eager(Enqueuer):
    """Enqueues like the enqueuer it replaces, and runs what was stored."""

    def __init__(self, before: Enqueuer, run: Callable[[Iterable[int]], None]) -> None:
        vars(self).update(vars(before))
        self._run = run

    def enqueue(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> Stored:
        stored = super().enqueue(task, arguments, options)
        if options.connection is None:
            self._run([stored[0]])
        return stored

    def enqueue_many(self, requests: Iterable[Request], connection: Any = None) -> list[Stored]:
        stored = super().enqueue_many(requests, connection)
        if connection is None:
            self._run([job_id for job_id, _ in stored])
        return stored

    def _store_within(self, connection: Any, jobs: Sequence[NewJob]) -> list[int]:
        ids: list[int] = []
        ids += callers_transaction.store(
            jobs, connection, database=self._database, ensured=self._ensured, ring=lambda: self._run(ids)
        )
        return ids


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a worker for these settings, without those that claim, wait and watch."""

    store: Store
    settings: SharedSettings
    executors: Mapping[str, Executor | AsyncExecutor]  # of plugins
    backends: Backends
    pipeline: Pipeline


class _Runner:
    """Runs stored jobs one after another."""

    def __init__(self, gq: GPUQueue, *, raises: bool) -> None:
        self._gq = gq
        self._raises = raises
        self._worker_id = f"eager-{os.getpid()}"
        self._made: _Parts | None = None
        self._making = threading.Lock()

    def run(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            while (lease := self._take(job_id)) is not None:
                if not self._run_attempt(lease):
                    break

    def _take(self, job_id: int) -> Lease | None:
        """Take a job that is due, or is waiting for its next attempt; None for any other, and after a rollback."""
        try:
            with self._gq.store.snapshot() as reads:
                job = reads.job(job_id)
        except UnknownJob:
            return None
        if job.state not in (State.AVAILABLE, State.RETRYABLE):
            return None
        if self._executor_of(lease_of(job, now_us=self._gq.now_us())) is None:
            raise UsageError(
                f"eager: this process has no function or executor for task {job.task!r} of job {job_id}. Register its function, "
                "or pass the plugin with its executor to the queue object"
            )
        return self._gq.store.attempts.claim_job(job, worker_id=self._worker_id, now_us=self._gq.now_us())

    def _run_attempt(self, lease: Lease) -> bool:
        """Run one attempt and store how it ended; returns whether another follows."""
        ended: list[EndedAttempt] = []

        def keep(attempt: EndedAttempt) -> bool:
            ended.append(attempt)
            return True

        self._parts().pipeline.carry_out(lease, Kind(publish=keep))
        outcome, error = ended[0].outcome, ended[0].error
        self._gq.store.attempts.finish([outcome], now_us=self._gq.now_us())
        if error is not None and not isinstance(error, ENDS_THE_ATTEMPT_ONLY):
            raise error  # such as Ctrl-C, or what pytest raises to fail a test
        if self._raises and isinstance(outcome, Ended):
            if error is not None:
                raise error
            self._gq.job(lease.job_id).result()
        return isinstance(outcome, Postponed) and outcome.outcome == "retried"

    def _executor_of(self, lease: Lease) -> Executor | None:
        known = self._gq.tasks.get(lease.task)
        if known is not None and known.function is not None:
            if inspect.iscoroutinefunction(known.function):
                return _Awaited(CoroutineExecutor(known.function))
            return CallableExecutor(known.function)
        parts = self._parts()
        backend = parts.backends.of(lease) if lease.task in VERBS else None
        found = parts.executors.get(lease.task if backend is None else lease.task.replace(OLLAMA, backend.name, 1))
        return _Awaited(found) if found is not None and is_async(found) else cast("Executor | None", found)

    def _parts(self) -> _Parts:
        with self._making:
            settings = self._gq.own_settings()  # a queue may have been added in code since
            if self._made is None or self._made.settings != settings or self._made.store is not self._gq.store:
                self._made = self._make(settings)
            return self._made

    def _make(self, settings: SharedSettings) -> _Parts:
        gq = self._gq
        gq.plugins.add_defaults(worker_policies())
        clock = Clock(wall=gq.now_us)
        site = Site(self._worker_id, gq.store, gq.plugins, settings, clock, WorkerLog(self._worker_id))
        executors: dict[str, Executor | AsyncExecutor] = {}
        details = RegisterExecutorsDetails(settings.backends, settings.models, settings.devices)
        for _, answer in gq.plugins.each("register_executors", details):
            executors = {**answer, **executors}
        backends = Backends(site)
        judge = Judge(
            site,
            backends,
            tasks=gq.tasks,
            max_payload_bytes=gq.config.max_payload_bytes,
            max_crashes=gq.config.worker.max_crashes,
        )
        orders = Orders()
        output = Output(gq.store, clock, orders)
        attempts = Attempts(site, judge, output, orders)
        pipeline = Pipeline(site, attempts, judge, output, EventLoop(clock), self._executor_of, end_worker=orders.fail)
        return _Parts(gq.store, settings, executors, backends, pipeline)


class _Awaited:
    """Runs an async executor to its end in the calling thread, or in another one if the calling thread has an event loop."""

    def __init__(self, executor: AsyncExecutor) -> None:
        self._executor = executor

    def run(self, context: AttemptContext) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._executor.arun(context))
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copy_context().run, lambda: asyncio.run(self._executor.arun(context))).result()
