"""Keeps the tasks and queues that one process has declared; reads no database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from gpuqueue.client.options import DEFAULT_QUEUE
from gpuqueue.client.tasks import Task
from gpuqueue.config.queue_options import read_queue_options
from gpuqueue.config.sections import check_yielding
from gpuqueue.config.shared import HasSettings
from gpuqueue.config.table import Setting
from gpuqueue.domain.errors import UnknownQueue, UnknownTask, UsageError
from gpuqueue.domain.settings import Overrun, QueueSettings, Rate, WhenUnavailable, WindowRule, YieldMode


class QueueOptions(TypedDict, total=False):
    """The settings that `gq.queue` takes: the fields of QueueSettings except its name."""

    gpu: bool
    concurrency: int | None
    rate: Rate | None
    pause: tuple[str, ...]
    windows: tuple[WindowRule, ...]
    overrun: Overrun
    timezone: str
    yields_to: tuple[str, ...]
    when_unavailable: WhenUnavailable
    retry_every_s: float
    yield_mode: YieldMode
    min_run_s: float
    nearly_done_s: float
    max_preemptions: int | None
    protect_s: float | None
    max_attempts: int | None
    timeout_s: float | None
    priority: int | None
    backend: str
    fallback: tuple[str, ...]


class Declarations:
    """`queues` are those with settings; when one is added the mapping is replaced, never changed."""

    def __init__(self, config: HasSettings) -> None:
        self._config = config
        self._set_queues(dict(config.queues))
        self.tasks: dict[str, Task[..., Any]] = {}
        self._task_queues = {DEFAULT_QUEUE}

    def add_queue(self, name: str, settings: Mapping[str, Any]) -> QueueSettings:
        """Create or change a queue. Raises: ConfigurationError; UnknownQueue for a queue in `yields_to`."""
        config, before = self._config, self.queues.get(name) if isinstance(name, str) else None
        made = read_queue_options(name, settings, before, devices=config.devices, backends=config.backends)
        queues = {**self.queues, name: made}
        for other in made.yields_to:
            if other not in queues:
                raise UnknownQueue(other, queues)
        check_yielding(name, Setting(made.yields_to, f"queue {name!r}: yields_to"), queues)
        self._set_queues(queues)
        return made

    def _set_queues(self, queues: dict[str, QueueSettings]) -> None:
        self.queues = queues
        # Checked for every enqueued job.
        self.rejecting = frozenset(name for name, item in queues.items() if item.when_unavailable == "reject")

    def add_queue_name(self, name: str) -> None:
        """Declare a queue without settings."""
        self._task_queues.add(name)

    def add_task(self, task: Task[..., Any]) -> None:
        """Add a task and declare its queue. Raises: UsageError if another function has its name."""
        known = self.tasks.get(task.name)
        if known is not None and known.place != task.place:
            raise UsageError(f"task {task.name!r} already exists; pass another name=")
        self.tasks[task.name] = task
        if task.defaults.queue is not None:
            self._task_queues.add(task.defaults.queue)

    def task(self, name: str) -> Task[..., Any]:
        """Find a task. Raises: UnknownTask."""
        task = self.tasks.get(name) if isinstance(name, str) else None
        if task is None:
            raise UnknownTask(name, self.tasks)
        return task

    @property
    def queue_names(self) -> set[str]:
        """The queues that this process declares: configured, created in code, named by a task, or the default one."""
        return set(self.queues) | self._task_queues
