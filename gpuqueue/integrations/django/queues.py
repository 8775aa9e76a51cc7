"""Owns the queue object behind each entry of TASKS: which file, which configuration; runs and enqueues nothing itself."""

from __future__ import annotations

import logging
import os
import shlex
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.db import connections
from django.utils.module_loading import autodiscover_modules

from gpuqueue.client.enqueueing import Request
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.options import DEFAULT_QUEUE, JobOptions, read_options
from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Signature, Task
from gpuqueue.config.loading import Config, database_path, database_url
from gpuqueue.contract.engine import Reads
from gpuqueue.domain.errors import ConfigurationError, UsageError
from gpuqueue.domain.job import Job
from gpuqueue.integrations.django import isolated, temporary
from gpuqueue.integrations.django.arguments import named_arguments
from gpuqueue.integrations.django.gpu_task import asked_of, declared, options_of, rules_of
from gpuqueue.integrations.django.model_demand import ModelDemand
from gpuqueue.integrations.django.results import import_task, read_result_id
from gpuqueue.integrations.django.running import runner
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS, task_backends
from gpuqueue.store import Store
from gpuqueue.store.handed import reads_over

__all__ = ["DjangoQueue", "queue"]

OWN_FILE = "gpuqueue.db"
CONFIGURATION = "gpuqueue.toml"
logger = logging.getLogger("gpuqueue.django")
ARGUMENTS = Signature(frozenset(), frozenset({"args", "kwargs", "run_after", "model"}))


class DjangoQueue(GPUQueue):
    """The queue object of one entry of TASKS: Django's tasks, and all that a GPUQueue is.

    `alias` is the entry, `database_alias` the entry of DATABASES whose file the queue lives in, None for a file of its own.
    `nameable` are the queues that a Django task may name, none of them meaning any, and `place_of_queues` says where another
    is added. `names` are those of the setting QUEUES, None where it is not given.
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
        """Return the task of this queue that runs a Django task; it is made at the first use. Raises: UsageError."""
        path = task.module_path
        known = self.tasks.get(path)
        return known if known is not None else self.add_task(self._made(task, path))

    def submit_task(self, task: Task[..., Any], arguments: dict[str, Any], options: JobOptions) -> JobHandle:
        """Store a job of a Django task."""
        return self.submit(task, arguments, options)

    def sought(
        self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Say what `gpuqueue.testing` looks for: a task's name, arguments by name, changed options, and what is stored beside.

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
        beside = {"run_after": task.run_after.isoformat()} if task.run_after is not None else {}
        if getattr(task, "model", None) != getattr(known, "model", None):
            beside["model"] = task.model
        return path, named, options, beside

    def named_arguments(self, job: Job) -> Mapping[str, Any]:
        """Name a job's arguments as its task's function does."""
        stored = job.arguments
        if not {"args", "kwargs"} <= stored.keys():
            return stored
        try:
            return named_arguments(import_task(job.task), stored["args"], stored["kwargs"])
        except (ImportError, SuspiciousOperation, TypeError):  # it is not there any more, or is another
            return stored

    def find_task(self, name: str) -> Task[..., Any] | None:
        """Find a task, also one whose module nobody has imported here yet."""
        known = self.tasks.get(name)
        if known is None and name not in self._missing:
            try:
                known = self.task_of(import_task(name))
            except Exception as error:  # whatever a module raises while it is imported
                self._missing.add(name)
                logger.warning("the task %s cannot be imported: %s: %s", name, type(error).__name__, error)
        return known

    def expect_queues(self, names: Iterable[str]) -> None:
        """Let queues exist that a worker is to serve, or that a job names first, where a task may name any queue."""
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
        """Word the command that starts a worker for this queue."""
        other = "" if self.alias == DEFAULT_ALIAS else f" --backend {shlex.quote(self.alias)}"
        return f"python manage.py gpuqueue_worker{other}"

    def _made(self, task: Any, path: str) -> Task[..., Any]:
        is_isolated = bool(getattr(task, "isolate", False))
        return Task(
            self,
            path,
            isolated.run if is_isolated else runner(self, task.func),
            read_options({**options_of(task), "queue": task.queue_name}),
            signature=ARGUMENTS,
            rules=rules_of(task),
            isolate=is_isolated,
            preemptible=bool(getattr(task, "preemptible", False)),
        )

    def transaction(self) -> Any:
        """Return Django's connection when this thread is in a transaction on the queue's file, else None."""
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
        """Read the rows of one moment; inside a transaction of Django's, as that one sees them."""
        inside = self.transaction()
        if inside is None:
            with self.store.snapshot() as reads:
                yield reads
        else:
            inside.ensure_connection()
            yield reads_over(inside.connection)


class TemporaryQueue(DjangoQueue):
    """The queue object of an entry of TASKS while tests run, in a file that only this process has: each test finds it empty.

    `stands_for` is the entry of DATABASES whose file it would live in, were that not in memory.
    """

    def __init__(self, alias: str, config: Config, stands_for: str | None, names: frozenset[str] | None) -> None:
        super().__init__(alias, config, None, names)
        self.stands_for = stands_for

    @property
    def store(self) -> Store:
        """The opened file, emptied when another test has begun."""
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
        """Return a connection, None in place of the one to the database in memory."""
        return None if self.stands_for is not None and getattr(connection, "alias", None) == self.stands_for else connection


def queue(alias: str = DEFAULT_ALIAS) -> DjangoQueue:
    """Return the queue object of an entry of TASKS; every thread of the process gets the same one.

    Raises: ConfigurationError.
    """
    from gpuqueue.integrations.django.backend import Backend

    backend = task_backends[alias]
    if not isinstance(backend, Backend):
        raise ConfigurationError(f"TASKS[{alias!r}] is a {type(backend).__name__}, which has no queue of gpuqueue's")
    return backend.gq


def job_of(result: Any) -> JobHandle:
    """Return the job behind a task's result, for its output, its place in the queue, or to cancel it. Raises: UnknownJob."""
    named = read_result_id(result.id)
    if named is None:
        raise UsageError(f"{result.id!r} is no result of gpuqueue's; the backend {result.backend!r} keeps no job for it")
    job_id, enqueued_us = named
    return JobHandle(queue(result.backend), job_id, None, enqueued_us)


def backends() -> list[Any]:
    """Return the backends of TASKS that are gpuqueue's."""
    from gpuqueue.integrations.django.backend import Backend

    return [backend for backend in map(task_backends.__getitem__, task_backends.settings) if isinstance(backend, Backend)]


def queues() -> list[DjangoQueue]:
    """Return the queue objects of all entries of TASKS that are gpuqueue's and last. Raises: ConfigurationError."""
    found = [backend.gq for backend in backends() if temporary.is_testing() or not in_memory(backend.options.get("database"))]
    return [gq for gq in found if not isinstance(gq, TemporaryQueue)]


def in_memory(database_alias: str | None) -> bool:
    """Say whether an entry of DATABASES is in memory, as in most tests."""
    if database_alias is None or database_alias not in connections.settings:
        return False
    connection = connections[database_alias]
    return bool(connection.vendor == "sqlite" and connection.is_in_memory_db())


def queue_of(
    alias: str, options: Mapping[str, Any], names: frozenset[str] | None, temporary_class: type[TemporaryQueue] | None = None
) -> DjangoQueue:
    """Return the queue object of these settings, which is made anew when they, or a database's file, have changed."""
    key = (temporary_class, repr(sorted(options.items())), names, *_surroundings())
    with _lock:
        made = _made.get(alias)
        if made is None or made[0] != key:
            made = _made[alias] = (key, _queue(alias, options, names, temporary_class))
        return made[1]


def _queue(
    alias: str, options: Mapping[str, Any], names: frozenset[str] | None, temporary_class: type[TemporaryQueue] | None
) -> DjangoQueue:
    where = f"TASKS[{alias!r}]['OPTIONS']"
    given = dict(options)
    database, file, configuration = (given.pop(name, None) for name in ("database", "file", "config"))
    if database is not None and file is not None:
        raise ConfigurationError(f"{where}: give 'database', an entry of DATABASES, or 'file', not both")
    path = _configuration_file(configuration)
    if database is not None:
        _expect_sqlite(database, where)
    is_named = database is None and file is None and bool(os.environ.get("GPUQUEUE_DATABASE"))
    if not is_named and (file is not None or database is not None or path is None):
        given["database"] = str(_base() / (file or (f"{database}.db" if database else OWN_FILE)))
    try:
        config = Config.load(path, **given)
    except UsageError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    own = database_path(config.database)
    is_of_tests = temporary.is_testing() and not is_named  # what they enqueue is not for the real workers
    shared = database or _alias_of(own, is_of_tests=is_of_tests)
    if temporary_class is not None or (is_of_tests and (shared is None or not temporary.has_test_file(shared))):
        made = temporary_class or TemporaryQueue
        return made(alias, _in_file(config, temporary.file_beside(own)), shared, names)
    if shared is not None and (database is not None or is_of_tests):
        config = _in_file(config, _file_of(shared, where))
    return DjangoQueue(alias, config, shared, names)


def _in_file(config: Config, file: Path) -> Config:
    return replace(config, database=database_url(file, relative_to=_base()))


def _base() -> Path:
    return Path(getattr(settings, "BASE_DIR", None) or Path.cwd())


def _configuration_file(given: str | os.PathLike[str] | None) -> Path | None:
    if given is not None:
        return _base() / given
    if named := os.environ.get("GPUQUEUE_CONFIG"):
        return Path(named)
    found = configuration_beside()
    return found if found.exists() else None


def configuration_beside() -> Path:
    """Return where a configuration is found without being named: beside manage.py."""
    return _base() / CONFIGURATION


def _file_of(alias: str, where: str) -> Path:
    connection = connections[alias]
    if connection.is_in_memory_db():
        raise ConfigurationError(
            f"{where}: the database {alias!r} is in memory, where no worker sees it. In tests without Django's test runner use "
            "'gpuqueue.integrations.django.EagerBackend', or give the database a file"
        )
    return Path(os.path.abspath(connection.settings_dict["NAME"]))


def _expect_sqlite(alias: str, where: str) -> None:
    if alias not in connections.settings:
        raise ConfigurationError(
            f"{where}: there is no database {alias!r} in DATABASES; there are: {', '.join(connections.settings)}"
        )
    connection = connections[alias]
    if connection.vendor != "sqlite":
        raise ConfigurationError(
            f"{where}: the database {alias!r} is {connection.display_name}, and gpuqueue keeps its jobs in an SQLite file; leave "
            "'database' out, and the queue has a file of its own"
        )


def _alias_of(path: Path, *, is_of_tests: bool) -> str | None:
    """Find the entry of DATABASES that is this file or, for tests, was before their runner came."""
    for alias in connections.settings:
        connection = connections[alias]
        if connection.vendor != "sqlite":
            continue
        names = {temporary.at_start.get(alias)} if is_of_tests else set()
        if not connection.is_in_memory_db():
            names.add(str(connection.settings_dict["NAME"]))
        for other in (Path(os.path.abspath(name)) for name in names if name):
            if other == path or (other.exists() and path.exists() and other.samefile(path)):
                return str(alias)
    return None


def _surroundings() -> tuple[Any, ...]:
    """Return all that the queues depend on beside their settings; Django's test runner changes much of it."""
    return (
        os.getpid() if temporary.is_testing() else None,
        tuple(str(entry.get("NAME")) for entry in connections.settings.values()),
        os.environ.get("GPUQUEUE_DATABASE", ""),
        os.environ.get("GPUQUEUE_CONFIG", ""),
        str(_base()),
    )


_lock = threading.Lock()
_made: dict[str, tuple[Any, DjangoQueue]] = {}
