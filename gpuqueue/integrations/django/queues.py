"""Provides the queue object of a Django project: its tasks are Django's, and jobs join Django's transactions."""

from __future__ import annotations

import inspect
import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import connections
from django.utils.module_loading import autodiscover_modules

from gpuqueue.client.enqueueing import Request
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.options import DEFAULT_QUEUE, JobOptions, read_options
from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Signature, Task
from gpuqueue.config.loading import Config
from gpuqueue.contract.reads import Reads
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import Job
from gpuqueue.integrations.django import isolated, temporary
from gpuqueue.integrations.django.arguments import named_arguments
from gpuqueue.integrations.django.gpu_task import asked_of, declared, options_of, rules_of
from gpuqueue.integrations.django.model_demand import ModelDemand
from gpuqueue.integrations.django.results import import_task
from gpuqueue.integrations.django.running import runner
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS
from gpuqueue.store.handed import reads_over
from gpuqueue.store.store import Store

__all__ = ["DjangoQueue", "TemporaryQueue"]

logger = logging.getLogger("gpuqueue.django")
ARGUMENTS = Signature(frozenset(), frozenset({"args", "kwargs", "run_after", "model"}))


class DjangoQueue(GPUQueue):
    """The queue object of one entry of TASKS: a GPUQueue whose tasks are Django's.

    `alias` is the entry, `database_alias` the entry of DATABASES whose file the queue shares, None for a separate file.
    `nameable` are the queues that a Django task may name, empty for any, and `place_of_queues` says where to add another.
    `names` are those of the setting QUEUES, None if it is not set.
    """

    runs_here = False  # tasks run in the thread that enqueues them, and in its transaction

    def __init__(self, alias: str, config: Config, database_alias: str | None, names: frozenset[str] | None) -> None:
        super().__init__(config=config, plugins={"django": ModelDemand()})
        self.alias = alias
        self.database_alias = database_alias
        if names is None:
            names = frozenset({DEFAULT_QUEUE, *config.queues}) if config.queues else frozenset()
            options = f"TASKS[{alias!r}]['OPTIONS']['queues']"
            self.place_of_queues = options if config.path is None else f"{config.path} as [queues.NAME], or to {options}"
        else:
            self.place_of_queues = f"TASKS[{alias!r}]['QUEUES']"
        self.nameable = names
        self._missing: set[str] = set()  # tasks that cannot be imported here
        for name in names:
            self._declared.add_queue_name(name)

    def task_of(self, task: Any) -> Task[..., Any]:
        """Return the task of this queue that runs a Django task; creates it at first use. Raises: UsageError."""
        path = task.module_path
        known = self.tasks.get(path)
        return known if known is not None else self.add_task(self._made(task, path))

    def submit_task(self, task: Task[..., Any], arguments: dict[str, Any], options: JobOptions) -> JobHandle:
        """Store a job of a Django task."""
        return self.submit(task, arguments, options)

    def sought(
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return what `gpuqueue.testing` looks for: task name, arguments by name, changed options, and what is stored with them.

        Raises: UsageError for an argument that the task does not take.
        """
        path = task.module_path
        try:
            named = named_arguments(task, args, kwargs, partly=True)
        except TypeError as error:
            raise UsageError(f"{path}: {error}") from None
        known = import_task(path)
        before, asked = (read_options({**asked_of(one), "priority": one.priority, "at": None}) for one in (known, task))
        options = {name: getattr(asked, name) for name in JobOptions.__slots__ if getattr(asked, name) != getattr(before, name)}
        stored = {"run_after": task.run_after.isoformat()} if task.run_after is not None else {}
        if getattr(task, "model", None) != getattr(known, "model", None):
            stored["model"] = task.model
        return path, named, options, stored

    def named_arguments(self, job: Job) -> Mapping[str, Any]:
        """Name a job's arguments as its task's function does."""
        stored = job.arguments
        if not {"args", "kwargs"} <= stored.keys():
            return stored
        try:
            return named_arguments(import_task(job.task), stored["args"], stored["kwargs"])
        except (ImportError, SuspiciousOperation, TypeError):  # the task no longer exists, or has changed
            return stored

    def find_task(self, name: str) -> Task[..., Any] | None:
        """Find a task, importing its module if needed."""
        known = self.tasks.get(name)
        if known is None and name not in self._missing:
            try:
                known = self.task_of(import_task(name))
            except Exception as error:  # whatever a module raises while it is imported
                self._missing.add(name)
                logger.warning("cannot import task %s: %s: %s", name, type(error).__name__, error)
        return known

    def expect_queues(self, names: Iterable[str]) -> None:
        """Create the queues that a worker is to serve, or that a job names, if a task may name any queue."""
        if not self.nameable:
            for name in names:
                if name not in self._declared.queue_names:
                    self._declared.add_queue_name(name)

    def discover(self) -> None:
        """Import the `tasks.py` of every app, so that a worker knows their tasks from its start."""
        autodiscover_modules("tasks")
        for task in list(declared.get(self.alias, {}).values()):
            self.task_of(task)

    def worker_command(self, queue: str) -> str:
        """Return the command that starts a worker for this queue."""
        other = "" if self.alias == DEFAULT_ALIAS else f" --backend {shlex.quote(self.alias)}"
        return f"python manage.py gpuqueue_worker{other}"

    def _made(self, task: Any, path: str) -> Task[..., Any]:
        is_isolated = bool(getattr(task, "isolate", False))
        is_asynchronous = inspect.iscoroutinefunction(task.func)
        return Task(
            self,
            path,
            isolated.run if is_isolated else runner(self, task.func),
            read_options({**options_of(task), "queue": task.queue_name}),
            signature=ARGUMENTS,
            rules=rules_of(task),
            isolate=is_isolated,
            preemptible=bool(getattr(task, "preemptible", False)),
            in_process=None if is_asynchronous else isolated.run,
        )

    def transaction(self) -> Any:
        """Return Django's connection if this thread is in a transaction on the queue's file, else None."""
        if self.database_alias is None:
            return None
        connection = connections[self.database_alias]
        is_open = connection.connection is not None
        is_in_transaction = connection.in_atomic_block or (
            not connection.autocommit if is_open else not connection.settings_dict["AUTOCOMMIT"]
        )
        return connection if is_in_transaction else None

    @contextmanager
    def rows(self) -> Iterator[Reads]:
        """Read a snapshot of the rows; inside a Django transaction, the rows as that transaction sees them."""
        inside = self.transaction()
        if inside is None:
            with self.store.snapshot() as reads:
                yield reads
        else:
            inside.ensure_connection()
            yield reads_over(inside.connection)


class TemporaryQueue(DjangoQueue):
    """The queue object of an entry of TASKS while tests run, in a file of this process alone; each test finds it empty.

    `stands_for` is the entry of DATABASES whose file it would share, if that were not in memory.
    """

    def __init__(self, alias: str, config: Config, stands_for: str | None, names: frozenset[str] | None) -> None:
        super().__init__(alias, config, None, names)
        self.stands_for = stands_for

    @property
    def store(self) -> Store:
        """The opened file, emptied when another test has started."""
        opened = super().store
        temporary.begin_anew(opened)
        return opened

    def submit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> JobHandle:
        return super().submit(task, arguments, replace(options, connection=self._other(options.connection)))

    async def asubmit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> JobHandle:
        return await super().asubmit(task, arguments, replace(options, connection=self._other(options.connection)))

    def enqueue_many(self, jobs: Iterable[Request], *, connection: Any = None) -> list[JobHandle]:
        return super().enqueue_many(jobs, connection=self._other(connection))

    async def aenqueue_many(self, jobs: Iterable[Request], *, connection: Any = None) -> list[JobHandle]:
        return await super().aenqueue_many(jobs, connection=self._other(connection))

    def _other(self, connection: Any) -> Any:
        """Return the connection, or None if it is to the in-memory database."""
        return None if self.stands_for is not None and getattr(connection, "alias", None) == self.stands_for else connection
