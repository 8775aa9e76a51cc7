"""Enqueues jobs: stores requests as rows, one at a time, together, or in a caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpuqueue.client import callers_transaction
from gpuqueue.client.async_twins import in_thread
from gpuqueue.client.declarations import Declarations
from gpuqueue.client.options import DEFAULT_QUEUE, JobOptions, merged, read_options
from gpuqueue.client.tasks import Task
from gpuqueue.config.loading import Config, database_path
from gpuqueue.config.shared import SharedSettings
from gpuqueue.domain.errors import UnknownQueue, UsageError
from gpuqueue.domain.job import Extras, NewJob
from gpuqueue.domain.json_text import NO_ARGUMENTS, named_to_json
from gpuqueue.domain.models import VERBS
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.settings import QueueSettings

if TYPE_CHECKING:
    from gpuqueue.store.store import Store

FUNCTION_ATTEMPTS = 1  # a function may not be safe to repeat, unless its task says so
REQUEST_ATTEMPTS = 3  # a request to a backend has no effects, and its runner may crash

# Builds the named tuple like its constructor, in half the time: every enqueue needs one.
_new: Callable[[type[NewJob], tuple[Any, ...]], NewJob] = tuple.__new__

Request = tuple[str | Task[..., Any], Mapping[str, Any]] | Mapping[str, Any]
# A stored job's id, and when it was enqueued if that was in the caller's transaction, which may be rolled back (else None).
Stored = tuple[int, int | None]


@dataclass(slots=True)
class _Plan:
    """How to store jobs of one task with the same options; valid while the options and the queues are the same objects."""

    options: JobOptions
    queues: Mapping[str, QueueSettings]
    complete: JobOptions
    queue: str
    priority: int
    max_attempts: int
    is_plain: bool  # they can start at once and have no special options


class HasStore(Protocol):
    """The parts of a queue object that storing jobs uses; the first use of `store` opens the file."""

    @property
    def store(self) -> Store: ...

    @property
    def clock_ns(self) -> Callable[[], int]: ...

    def agreed_settings(self) -> SharedSettings: ...


def read_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a job's arguments, None for none. Raises: UsageError if they have no names."""
    if given is not None and not (isinstance(given, Mapping) and all(isinstance(name, str) for name in given)):
        raise UsageError(f"a job's arguments must be a dict of names and values, not {safe_repr(given)}")
    return dict(given or {})


class Enqueuer:
    """Stores jobs of declared tasks."""

    def __init__(self, gq: HasStore, declarations: Declarations, config: Config) -> None:
        self._gq = gq
        self._declared = declarations
        self._config = config
        self._ensured: set[str] = set()  # queues that have a row
        self._model_queues: set[str] = set()  # queues that may run models

    def for_file_of(self, config: Config) -> Enqueuer:
        """Return one for another file, with nothing cached."""
        made = copy(self)
        made._config = config
        made.forget_file()
        return made

    def forget_file(self) -> None:
        """Forget what is known of the file: another one may have its name."""
        self._ensured, self._model_queues = set(), set()

    def enqueue(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> Stored:
        """Store one job. Raises: UnknownQueue, UsageError, PayloadError, StoreError."""
        now_us = self._gq.clock_ns() // 1000
        job = self._new_job(task, arguments, options, now_us)
        if options.connection is None:
            return self._gq.store.jobs.enqueue(job), None
        return self._store_within(options.connection, [job])[0], now_us

    def enqueue_many(self, requests: Iterable[Request], connection: Any = None) -> list[Stored]:
        """Store all or none, in one transaction. Raises: as `enqueue`, and UnknownTask, with the position of the wrong job."""
        now_us = self._gq.clock_ns() // 1000
        new = self._new_jobs(requests, connection, now_us)
        if connection is None:
            return [(job_id, None) for job_id in self._gq.store.jobs.enqueue_many(new)]
        return [(job_id, now_us) for job_id in self._store_within(connection, new)]

    async def aenqueue(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> Stored:
        """The async twin of `enqueue`; work in a caller's transaction stays in its thread."""
        if options.connection is None:
            return await in_thread(self.enqueue, task, arguments, options)
        now_us = self._gq.clock_ns() // 1000
        job = self._new_job(task, arguments, options, now_us)
        return (await self._astore_within(options.connection, [job]))[0], now_us

    async def aenqueue_many(self, requests: Iterable[Request], connection: Any = None) -> list[Stored]:
        """The async twin of `enqueue_many`."""
        if connection is None:
            return await in_thread(self.enqueue_many, requests)
        now_us = self._gq.clock_ns() // 1000
        new = self._new_jobs(requests, connection, now_us)
        return [(job_id, now_us) for job_id in await self._astore_within(connection, new)]

    @property
    def _database(self) -> Path:
        return database_path(self._config.database)

    def _store_within(self, connection: Any, jobs: Sequence[NewJob]) -> list[int]:
        return callers_transaction.store(
            jobs,
            connection,
            database=self._database,
            ensured=self._ensured,
            ring=lambda: self._gq.store.wakeups.ring_workers(),
        )

    async def _astore_within(self, connection: Any, jobs: Sequence[NewJob]) -> list[int]:
        connection = callers_transaction.unwrapped(connection)
        if not callers_transaction.is_awaited(connection):
            return self._store_within(connection, jobs)
        ids: list[int] = await connection.run_sync(self._store_within, jobs)
        return ids

    def _new_jobs(self, requests: Iterable[Request], connection: Any, now_us: int) -> list[NewJob]:
        new = []
        for position, request in enumerate(requests):
            try:
                task, arguments, asked = self._read(request)
                options = replace(merged(asked, task.defaults), connection=connection)
                new.append(self._new_job(task, arguments, options, now_us))
            except UsageError as error:
                error.args = (f"job {position} of this call: {error}",)
                raise
        return new

    def _read(self, request: Request) -> tuple[Task[..., Any], Mapping[str, Any], JobOptions]:
        if isinstance(request, Mapping):
            rest = dict(request)
            named, arguments = rest.pop("task", None), rest.pop("arguments", {})
            asked = read_options(rest)
        else:
            try:
                named, arguments = request
            except (TypeError, ValueError):
                raise UsageError(f"expected (task, arguments) or a dict with 'task', not {safe_repr(request)}") from None
            asked = JobOptions()
        return named if isinstance(named, Task) else self._declared.task(named), read_arguments(arguments), asked

    def _new_job(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions, now_us: int) -> NewJob:
        if arguments.keys() != task.signature.required:
            task.signature.check(task.name, arguments)
        plan: _Plan | None = task.plan
        if plan is None or plan.options is not options or plan.queues is not self._declared.queues:
            plan = task.plan = self._plan(task, options)
        queue = plan.queue
        if queue not in self._ensured and options.connection is None:
            self._ensure_queue(queue)
        text = NO_ARGUMENTS
        if arguments:
            text = named_to_json(arguments, self._config.max_payload_bytes, task.arguments_name)
        if plan.is_plain:  # most jobs are, and this takes fewer microseconds
            return _new(NewJob, (queue, task.name, text, now_us, plan.priority, plan.max_attempts, None))
        complete = plan.complete
        scheduled_at_us = complete.at_us
        if scheduled_at_us is None and complete.delay_s is not None:
            scheduled_at_us = now_us + int(complete.delay_s * 1e6)
        return NewJob(
            queue,
            task.name,
            text,
            now_us,
            plan.priority,
            plan.max_attempts,
            Extras(
                scheduled_at_us,
                complete.timeout_s,
                None if complete.expires_in_s is None else now_us + int(complete.expires_in_s * 1e6),
                complete.tags,
                complete.vram_bytes,
                complete.device,
                complete.fallback,
            ),
        )

    def _plan(self, task: Task[..., Any], options: JobOptions) -> _Plan:
        """Plan how to store the task's jobs. Raises: as `_completed`."""
        complete = self._completed(task, options)
        queue, priority, max_attempts = complete.queue or DEFAULT_QUEUE, complete.priority or 0, complete.max_attempts or 1
        plain = JobOptions(queue, complete.priority, complete.max_attempts, connection=complete.connection)
        return _Plan(options, self._declared.queues, complete, queue, priority, max_attempts, complete == plain)

    def _completed(self, task: Task[..., Any], options: JobOptions) -> JobOptions:
        """Fill in the defaults of the queue and the kind of task. Raises: UnknownQueue; UsageError for a queue without models."""
        queue = options.queue or DEFAULT_QUEUE
        self._expect_queue(queue)
        if task.name in VERBS:
            self._ensure_model_queue(queue)
        settings = self._declared.queues.get(queue) or QueueSettings(queue)
        attempts = FUNCTION_ATTEMPTS if task.function else REQUEST_ATTEMPTS
        return merged(
            options,
            JobOptions(
                queue=queue,
                priority=settings.priority or 0,
                max_attempts=settings.max_attempts or attempts,
                timeout_s=settings.timeout_s,
            ),
        )

    def _expect_queue(self, name: str) -> None:
        if name not in self._declared.queue_names:
            with self._gq.store.reading() as reads:
                stored = reads.queue_names()
            if name not in stored:
                raise UnknownQueue(name, stored | self._declared.queue_names)

    def _ensure_queue(self, name: str) -> None:
        self._gq.store.queues.ensure(name)
        self._ensured.add(name)

    def _ensure_model_queue(self, name: str) -> None:
        """Refuse a model's request in a queue that would not reserve its memory. Raises: UsageError."""
        if name in self._model_queues:
            return
        settings = self._gq.agreed_settings()
        queues = {**settings.queues, **self._declared.queues}
        if settings.devices and not (name in queues and queues[name].gpu):
            right = ", ".join(sorted(other for other, queue in queues.items() if queue.gpu)) or "none"
            raise UsageError(
                f"queue {name!r} does not set gpu = true, so a model's memory would not be reserved. "
                f"Queues with gpu = true: {right}"
            )
        self._model_queues.add(name)
