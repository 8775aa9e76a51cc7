"""Implements a task backend for tests, which runs a task at once where it is enqueued; needs no database and no worker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from gpuqueue.client.handle import JobHandle
from gpuqueue.client.options import JobOptions
from gpuqueue.client.tasks import Task
from gpuqueue.config.loading import Config
from gpuqueue.domain.errors import ConfigurationError
from gpuqueue.integrations.django.backend import Backend
from gpuqueue.integrations.django.lookup import job_of
from gpuqueue.integrations.django.queues import TemporaryQueue
from gpuqueue.testing.eager import run_at_once

__all__ = ["EagerBackend"]


class EagerQueue(TemporaryQueue):
    """A queue object in a file that is deleted with the process; its jobs have ended when `enqueue` returns."""

    runs_here = True

    def __init__(self, alias: str, config: Config, stands_for: str | None, names: frozenset[str] | None) -> None:
        super().__init__(alias, config, stands_for, names)
        self._storing = self._enqueuer
        self.run_stored = run_at_once(self)

    def submit_task(self, task: Task[..., Any], arguments: dict[str, Any], options: JobOptions) -> JobHandle:
        job_id, _ = self._storing.enqueue(task, arguments, replace(options, at_us=None))
        return JobHandle(self, job_id)

    def discover(self) -> None:
        raise ConfigurationError(
            f"TASKS[{self.alias!r}] is an EagerBackend: its tasks run where they are enqueued, never in a worker"
        )


class EagerBackend(Backend):
    """Runs a task at once, in the calling thread and inside its transaction; the task has ended when `enqueue` returns.

    It takes the settings of `Backend`, but its queue is in a temporary file; gpuqueue's own jobs run at once as well, as in
    `gpuqueue.testing.eager`. It does not wait for `run_after`. A failed task's result has the error; `enqueue` does not raise it.
    """

    queue_class = EagerQueue

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Run a task, and return its result."""
        result = super().enqueue(task, args, kwargs)
        cast(EagerQueue, self.gq).run_stored([job_of(result).id])
        result.refresh()
        return result
