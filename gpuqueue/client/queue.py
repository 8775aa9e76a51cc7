"""The client: enqueues, finds, waits for, controls and explains jobs; never runs one, reads a device or asks a backend."""

from __future__ import annotations

import inspect
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack, cast, overload

from gpuqueue.client.async_twins import in_thread, twin
from gpuqueue.client.declarations import Declarations, QueueOptions
from gpuqueue.client.enqueueing import Enqueuer, Request, read_arguments
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.ollama import OllamaTasks
from gpuqueue.client.options import DEFAULT_QUEUE, EnqueueOptions, JobOptions, merged, read_options, read_texts
from gpuqueue.client.tasks import Signature, Task, TaskSettings
from gpuqueue.config.loading import Config, database_path
from gpuqueue.config.shared import SharedSettings, agreed, shared_settings
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import REFUSAL, UnknownQueue, UsageError
from gpuqueue.domain.explanation import Expectation, Explanation
from gpuqueue.domain.job import Cancellation, State
from gpuqueue.domain.models import VERBS
from gpuqueue.domain.numbers import job_id as checked_id
from gpuqueue.domain.numbers import whole_number
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import Duration, from_us, parse_duration, parse_time_us
from gpuqueue.domain.view import Pause, ServiceInfo, View, WorkerInfo
from gpuqueue.store import open_store

if TYPE_CHECKING:
    from gpuqueue.client.following import Follower, Reader
    from gpuqueue.store.store import Store

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


class _opened_at_first_use(cached_property["Store"]):
    """A cached property with a lock that a signal handler may take again, and that no other process holds."""

    @overload
    def __get__(self, gq: None, owner: type[Any] | None = None) -> Self: ...

    @overload
    def __get__(self, gq: object, owner: type[Any] | None = None) -> Store: ...

    def __get__(self, gq: Any, owner: type[Any] | None = None) -> Self | Store:
        if gq is None:
            return self
        kept: dict[str, Store] = gq.__dict__
        # By process: in a forked child, a thread of its parent would hold it forever.
        with gq._opening.setdefault(os.getpid(), threading.RLock()):
            if "store" not in kept:
                opened = self.func(gq)
                if kept.setdefault("store", opened) is not opened:  # a signal handler opened it meanwhile
                    opened.close()
                opened.on_replaced(gq._forget_file)
            return kept["store"]


class GPUQueue:
    """A job queue in one SQLite file.

    `database` is a path or `sqlite:///…` URL; `plugins`, a list or {name: plugin}, are registered in addition to installed
    ones, and each reads its section of the configuration, `[name]`. The file is opened at first use, and created or upgraded
    if needed. Safe to use from many threads; in a signal handler, unless it interrupts a write of its thread (UsageError); and in
    a forked child, unless it was born with the file open, by a connection that gpuqueue could not close (ForkedWithOpenFile).
    Raises: ConfigurationError; at first use StoreError.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | None = None,
        *,
        config: Config | None = None,
        plugins: Iterable[object] | Mapping[str, object] = (),
        discover_plugins: bool = True,
    ) -> None:
        # Keeps a web process's start short: modules are loaded when they are needed.
        from gpuqueue.contract.plugin_set import Plugins
        from gpuqueue.decisions.policies import WORKER_POLICY_NAMES, default_policies

        self.config = config if config is not None else Config.default(database)
        self.plugins = Plugins(
            default_policies(),
            blocked=self.config.plugins_blocked,
            reserved=WORKER_POLICY_NAMES,
            discover=discover_plugins,
        )
        for name, plugin in plugins.items() if isinstance(plugins, Mapping) else ((None, plugin) for plugin in plugins):
            self.plugins.register(plugin, name)
        self.plugins.configure(self.config.plugin_tables)
        self.clock_ns: Callable[[], int] = time.time_ns
        self._declared = Declarations(self.config)
        self._enqueuer = Enqueuer(self, self._declared, self.config)
        self.ollama = OllamaTasks(self)
        self._opening: dict[int, threading.RLock] = {}

    @classmethod
    def from_config(
        cls,
        path: str | os.PathLike[str],
        *,
        plugins: Iterable[object] | Mapping[str, object] = (),
        discover_plugins: bool = True,
        **overrides: Any,
    ) -> GPUQueue:
        """Create the queue object that a gpuqueue.toml describes; `overrides` win over it. Raises: ConfigurationError."""
        return cls(config=Config.load(path, **overrides), plugins=plugins, discover_plugins=discover_plugins)

    # --- declaring ---

    def queue(self, name: str, **settings: Unpack[QueueOptions]) -> QueueSettings:
        """Create or change a queue in code. Raises: ConfigurationError, UnknownQueue."""
        return self._declared.add_queue(name, settings)

    @overload
    def task(self, function: Callable[Parameters, Returned], /) -> Task[Parameters, Returned]: ...

    @overload
    def task(
        self, **settings: Unpack[TaskSettings]
    ) -> Callable[[Callable[Parameters, Returned]], Task[Parameters, Returned]]: ...

    def task(  # type: ignore[misc]  # that **settings covers a TypedDict is not seen
        self, function: Callable[..., Any] | None = None, /, **settings: Any
    ) -> Any:
        """Register a function, plain or async, as a task; its arguments and result are JSON.

        Also declares its queue. Raises: UsageError for a wrong setting, or if the name is taken.
        """

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            return self.add_task(Task.of(self, function, cast(TaskSettings, settings)))

        return register if function is None else register(function)

    def add_task(self, task: Task[Parameters, Returned]) -> Task[Parameters, Returned]:
        """Register a task object. Raises: UsageError if another function has its name."""
        self._declared.add_task(task)
        return task

    def verb(
        self,
        name: str,
        *,
        required: Iterable[str] = (),
        optional: Iterable[str] | None = None,
        **options: Unpack[EnqueueOptions],
    ) -> Task[..., Any]:
        """Declare a task that a plugin's executor runs in the workers, and its queue.

        `required` and `optional` name its arguments; with `optional` None it takes any others. Options are those of
        `Task.using`. Raises: UsageError for a wrong option, or if a function has the name.
        """
        needed = frozenset(read_texts("required", required))
        signature = Signature(needed, None if optional is None else needed | frozenset(read_texts("optional", optional)))
        defaults = read_options({"queue": DEFAULT_QUEUE, **options})
        return self.add_task(Task[..., Any](self, name, None, defaults, signature=signature))

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]:
        """The registered tasks: {name: task}."""
        return self._declared.tasks

    def find_task(self, name: str) -> Task[..., Any] | None:
        """Find a task for a worker that claimed its job; a framework's queue object may look beyond the registered ones."""
        return self.tasks.get(name)

    # --- enqueueing ---

    def enqueue(self, name: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[EnqueueOptions]) -> JobHandle:
        """Store a job of a task by its name. Raises: UnknownTask, UnknownQueue, UsageError, PayloadError, StoreError."""
        task = self._declared.task(name)
        return self.submit(task, read_arguments(arguments), merged(read_options(options), task.defaults))

    async def aenqueue(
        self, name: str, arguments: Mapping[str, Any] | None = None, **options: Unpack[EnqueueOptions]
    ) -> JobHandle:
        """The async twin of `enqueue`."""
        task = self._declared.task(name)
        return await self.asubmit(task, read_arguments(arguments), merged(read_options(options), task.defaults))

    def enqueue_many(self, jobs: Iterable[Request], *, connection: Any = None) -> list[JobHandle]:
        """Store all the jobs in one transaction, which may be a caller's `connection`, or none.

        Each is `(task or its name, arguments)`, or a dict with `task`, `arguments` and options of `Task.using`.
        Raises: as `enqueue`, with the position of the wrong job.
        """
        return [JobHandle(self, job_id, None, unsure) for job_id, unsure in self._enqueuer.enqueue_many(jobs, connection)]

    async def aenqueue_many(self, jobs: Iterable[Request], *, connection: Any = None) -> list[JobHandle]:
        """The async twin of `enqueue_many`."""
        stored = await self._enqueuer.aenqueue_many(jobs, connection)
        return [JobHandle(self, job_id, None, unsure) for job_id, unsure in stored]

    def submit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> JobHandle:
        """Store a job of a task with its options; `enqueue` and `Task.enqueue` use it."""
        job_id, unsure_since_us = self._enqueuer.enqueue(task, arguments, options)
        if unsure_since_us is None and options.queue in self._declared.rejecting:
            self._refuse_if_held(job_id, options.queue)
        return JobHandle(self, job_id, None, unsure_since_us)

    async def asubmit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions) -> JobHandle:
        """The async twin of `submit`."""
        job_id, unsure_since_us = await self._enqueuer.aenqueue(task, arguments, options)
        if unsure_since_us is None and options.queue in self._declared.rejecting:
            await in_thread(self._refuse_if_held, job_id, options.queue)
        return JobHandle(self, job_id, None, unsure_since_us)

    def _refuse_if_held(self, job_id: int, queue: str) -> None:
        """Refuse a job at once, as a worker would, if its backend is known to be unavailable: its caller need not wait."""
        with self.store.reading() as reads:
            away = any(not row.available for row in reads.backends().values())
            job = reads.job(job_id)
        if not away:
            return
        # A worker does not refuse a job that is not due: its backend may be available again by then.
        waits = job.state is State.AVAILABLE
        if waits and any(hold.refuse for hold in self.holds().get(queue, ())):
            self.store.jobs.refuse_one(job_id, message=REFUSAL, now_us=self.now_us())

    # --- finding and controlling ---

    def job(self, job_id: int) -> JobHandle:
        """Find a job. Raises: UnknownJob; UsageError if the id is not an integer."""
        return JobHandle(self, checked_id(job_id)).refresh()

    def jobs(
        self, *, queue: str | None = None, state: State | str | None = None, limit: int = 50, after: int | None = None
    ) -> list[JobHandle]:
        """List jobs, newest first; `after` is the last id of the previous page. Raises: UsageError."""
        if state is not None and state not in list(State):
            raise UsageError(f"unknown state {safe_repr(state)}. States: {', '.join(State)}")
        whole_number(limit, what="limit")
        if after is not None:
            whole_number(after, what="after")
        if queue is not None:
            self._expect_queue(queue)
        with self.store.reading() as reads:
            found = reads.jobs(queue=queue, state=None if state is None else State(state), limit=limit, after=after)
        return [JobHandle(self, job.id, job) for job in found]

    def pause(self, queue: str, *, reason: str = "", until: datetime | Duration | None = None, by: str | None = None) -> None:
        """Pause a queue: none of its jobs starts after this returns; running ones continue.

        `until` is an aware datetime or a duration from now; without it the pause lasts until `resume`. Raises: UnknownQueue.
        """
        self._expect_queue(queue)
        now = self.now()
        if isinstance(until, datetime):
            parse_time_us(until, what="until")
        elif until is not None:
            until = now + timedelta(seconds=parse_duration(until, what="until"))
        self.store.queues.pause(queue, Pause(by or _user(), reason, now, until))

    def resume(self, queue: str, *, by: str | None = None) -> bool:
        """Lift a manual pause; returns whether there was one. Raises: UnknownQueue."""
        self._expect_queue(queue)
        return self.store.queues.resume(queue, by=by or _user(), now_us=self.now_us())

    def retry_failed(self, queue: str | None = None) -> int:
        """Make all discarded jobs, of one queue or of all, available again; returns how many. Raises: UnknownQueue."""
        if queue is not None:
            self._expect_queue(queue)
        return self.store.jobs.retry_failed(queue, now_us=self.now_us())

    def cancel_all(self, queue: str) -> Cancellation:
        """Cancel all waiting jobs of a queue and ask the running ones to stop; returns how many of each.

        Jobs enqueued meanwhile are not cancelled. Raises: UnknownQueue.
        """
        self._expect_queue(queue)
        return self.store.jobs.cancel_all(queue, now_us=self.now_us())

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the jobs: {queue: {state: number}}, leaving out zeros; finished ones while they are kept."""
        with self.store.reading() as reads:
            counted = reads.counts()
        return {name: counted.get(name, {}) for name in sorted(set(self._declared.queues) | set(counted))}

    def holds(self) -> dict[str, list[Hold]]:
        """Return each queue's holds now: {queue: [Hold(reason, detail, until)]}, an empty list if it is not held."""
        from gpuqueue.client import inspection

        return {name: list(holds) for name, holds in inspection.holds_of(self.view(), self.plugins).items()}

    def explain(self, job_id: int) -> Explanation:
        """Explain a job's state, with every reason. Raises: UnknownJob."""
        from gpuqueue.client import inspection

        return inspection.explain_job(
            self.store,
            checked_id(job_id),
            self.own_settings(),
            self.plugins,
            now=self.now(),
            worker_command=self.worker_command(""),
        )

    def circle_of(self, waiter_id: int, awaited_id: int) -> str | None:
        """Return why the task of one job must not wait for another job, because that cannot end before it; None if it may."""
        from gpuqueue.client import inspection

        return inspection.circle_of(
            self.store, waiter_id, awaited_id, self.own_settings(), needs_thread=self._needs_thread, now=self.now()
        )

    def _needs_thread(self, name: str) -> bool:
        task = self.tasks.get(name)
        if task is None or task.function is None:
            return name in VERBS
        return task.isolate or not inspect.iscoroutinefunction(task.function)

    def expected_ends(self) -> dict[str, datetime]:
        """Return when each queue's waiting jobs should be done: {queue: datetime}; queues without an estimate are left out."""
        return {name: found.finish_at for name, found in self.expectations().items() if found.finish_at is not None}

    def expectations(self) -> dict[str, Expectation]:
        """Return the expected times of each queue's last waiting job: {queue: Expectation}, without unknown ones."""
        from gpuqueue.client import inspection

        return inspection.expectations(self.store, self.own_settings(), self.plugins, self.now())

    def workers(self) -> list[WorkerInfo]:
        """List the live workers."""
        from gpuqueue.client import inspection

        return inspection.workers(self.store, now_us=self.now_us())

    def view(self) -> View:
        """Read the snapshot that decisions are made from."""
        from gpuqueue.client import inspection

        return inspection.see(self.store, self.own_settings(), self.plugins, self.now())

    def services(self) -> list[ServiceInfo]:
        """List the singleton services, such as a mirror, with the worker that runs each and its reported status."""
        with self.store.reading() as reads:
            return reads.services(now_us=self.now_us())

    def follow(self, name: str) -> Follower:
        """Return a follower of all events from now on, or from its cursor if this name is already registered."""
        from gpuqueue.client.following import Follower

        return Follower(self.store, name)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """Read many jobs in one snapshot: `with gq.read() as reader`."""
        from gpuqueue.client.following import Reader

        with self.store.snapshot() as reads:
            yield Reader(reads)

    def plugin(self, name: str) -> object:
        """Return a registered plugin with its configuration read, for its own commands. Raises: UsageError."""
        return self.plugins.plugin(name)

    # --- async twins ---

    ajob = twin(job)
    ajobs = twin(jobs)
    apause = twin(pause)
    aresume = twin(resume)
    aretry_failed = twin(retry_failed)
    acancel_all = twin(cancel_all)
    acounts = twin(counts)
    aholds = twin(holds)
    aexplain = twin(explain)
    aexpected_ends = twin(expected_ends)
    aexpectations = twin(expectations)
    aworkers = twin(workers)
    aservices = twin(services)

    # --- the file and the settings ---

    @_opened_at_first_use
    def store(self) -> Store:
        """The opened database file."""
        return self.open_store()

    def open_store(self, *, patient: bool = False) -> Store:
        """Open the file again, with separate connections; a worker opens it `patient`."""
        return open_store(self.database, synchronous=self.config.synchronous, patient=patient, now_us=self.now_us)

    def _forget_file(self) -> Store | None:
        """Let the next use open the file anew; returns what was open."""
        self._enqueuer.forget_file()
        opened: Store | None = self.__dict__.pop("store", None)
        return opened

    @property
    def database(self) -> Path:
        """The absolute path of the file."""
        return database_path(self.config.database)

    def own_settings(self) -> SharedSettings:
        """Return this process's settings, including queues created in code."""
        config = self.config
        return SharedSettings(
            self._declared.queues, config.devices, config.models, config.backends, config.placement, config.plugins_blocked
        )

    def agreed_settings(self) -> SharedSettings:
        """Return the settings that the workers agreed on; before the first worker, this process's own."""
        with self.store.reading() as reads:
            return agreed(reads.configuration(), self.own_settings())

    def queue_settings(self, name: str) -> QueueSettings:
        """Return a queue's settings, as the workers agreed."""
        return self.agreed_settings().queues.get(name) or QueueSettings(name)

    def queue_names(self) -> set[str]:
        """Return the names of all queues."""
        with self.store.reading() as reads:
            return reads.queue_names() | self._declared.queue_names

    def _expect_queue(self, name: str) -> None:
        if not isinstance(name, str) or (name not in self._declared.queue_names and name not in self.queue_names()):
            raise UnknownQueue(name, self.queue_names())

    def is_served(self, queue: str) -> bool:
        """Say whether a live worker serves the queue."""
        from gpuqueue.client import inspection

        return inspection.is_served(queue, self.workers())

    def worker_command(self, queue: str) -> str:
        """Return the command that starts a worker for this queue."""
        if self.config.path is not None:
            where = f"--config {shlex.quote(str(self.config.path))}"
        else:
            where = f"--database {shlex.quote(str(self.database))}"
        apps = sorted({task.function.__module__ for task in self.tasks.values() if task.function is not None})
        app = " --app MODULE:QUEUE_OBJECT" if apps else ""
        return f"gpuqueue {where} worker{app}"

    def now_us(self) -> int:
        """Return the queue's time: microseconds since 1970-01-01 UTC."""
        return self.clock_ns() // 1000

    def now(self) -> datetime:
        """Return the queue's time as an aware datetime in UTC."""
        return from_us(self.now_us()).astimezone(UTC)

    def shared(self) -> dict[str, Any]:
        """Return this process's own settings as JSON-serialisable data."""
        return shared_settings(self.own_settings())

    def close(self) -> None:
        """Close the file's connections."""
        store = self._forget_file()
        if store is not None:
            store.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lstrip('_')} {self.database}>"

    def __enter__(self) -> GPUQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, in a container
        return f"uid {os.getuid()}"
