"""Implements Django's task backend: stores tasks as jobs and returns jobs as results; runs nothing."""

from __future__ import annotations

from typing import Any

from gpuqueue.client.options import merged, read_options
from gpuqueue.domain.errors import UnknownJob, did_you_mean
from gpuqueue.domain.units import to_us
from gpuqueue.integrations.django import entries, results
from gpuqueue.integrations.django.arguments import stored_arguments
from gpuqueue.integrations.django.gpu_task import GPUTask, asked_of, check_options, declared
from gpuqueue.integrations.django.installed import check_installed
from gpuqueue.integrations.django.queues import DjangoQueue, TemporaryQueue
from gpuqueue.integrations.django.tasks_api import (
    BaseTaskBackend,
    InvalidTask,
    TaskResultDoesNotExist,
    task_enqueued,
)

__all__ = ["Backend"]


class Backend(BaseTaskBackend):
    """Stores tasks as jobs of a gpuqueue.

    QUEUES are the queue names that a task may use: by default "default" and the configured queues. With `[]`, or if no queue
    is configured, a task may use any name.
    The signal `task_finished` is sent for tasks that succeeded or failed, not for cancelled ones.
    OPTIONS: `file`, the queue's own SQLite file ("gpuqueue.db" by default), or `database`, the entry of DATABASES whose file
    it shares; `config`, a gpuqueue.toml (one in BASE_DIR is found automatically); and the sections of a gpuqueue.toml, as
    mappings: `"queues": {"ai": {"gpu": True}}`.
    """

    queues: set[str]
    task_class = GPUTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    queue_class: type[TemporaryQueue] | None = None  # for a queue that ends with this process

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._names = frozenset(self.queues) if "QUEUES" in params else None

    @property
    def gq(self) -> DjangoQueue:
        """The queue object, which all threads share."""
        return entries.queue_of(self.alias, self.options, self._names, self.queue_class)

    def check(self, **kwargs: Any) -> Any:
        """Check the settings; the app does most of it, once for all backends."""
        return check_installed()

    def validate_task(self, task: Any) -> None:
        """Refuse a task that cannot be enqueued. Raises: InvalidTask."""
        if task.queue_name not in self.queues:
            self._expect_queue(task)
        super().validate_task(task)
        check_options(task)
        declared.setdefault(self.alias, {}).setdefault(task.module_path, task)

    def _expect_queue(self, task: Any) -> None:
        """Raises: InvalidTask if the settings list the queues, and the task's is not among them."""
        if self._names is None:  # configured elsewhere, and only read if a task uses a queue other than "default"
            self.queues = set(self.gq.nameable)
        if self.queues and task.queue_name not in self.queues:
            # Starts like Django's own message, which other code may match.
            raise InvalidTask(
                f"{task.module_path}: Queue {task.queue_name!r} is not valid for backend. TASKS[{self.alias!r}] has the queues "
                f"{', '.join(sorted(self.queues))}{did_you_mean(task.queue_name, self.queues)}; add it to "
                f"{self.gq.place_of_queues}"
            )

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Store a job; in a transaction on the queue's file, the job belongs to that transaction."""
        self.validate_task(task)
        arguments = stored_arguments(task, args, kwargs)
        if getattr(task, "model", None):
            arguments["model"] = task.model
        if task.run_after is not None:
            arguments["run_after"] = task.run_after.isoformat()
        gq = self.gq
        made = gq.task_of(task)
        gq.expect_queues((task.queue_name,))
        options = read_options({**asked_of(task), "connection": gq.transaction()})
        handle = gq.submit_task(made, arguments, merged(options, made.defaults))
        result = results.new_result(handle.id, handle.enqueued_at, task, args, kwargs, self.alias)
        task_enqueued.send_robust(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Read a job's result. Raises: TaskResultDoesNotExist."""
        gq = self.gq
        named = results.read_result_id(result_id)
        if named is None:
            raise TaskResultDoesNotExist(result_id)
        try:
            with gq.rows() as reads:
                job = reads.job(named[0])
                if to_us(job.enqueued_at) == named[1]:
                    return results.result_of(reads, job, self.alias)
        except UnknownJob:
            pass
        raise TaskResultDoesNotExist(result_id)
