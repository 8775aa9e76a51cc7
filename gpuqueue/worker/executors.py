"""Finds the executor that runs a task in this worker: a plugin's, or one for a registered function; runs nothing itself.

A suspect's executor runs the task in a process that runs only this job, if one can import the task.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Task, module_of
from gpuqueue.contract.executor import AnyExecutor, AttemptContext, AttemptInterrupted, Executor, is_async
from gpuqueue.contract.hookspecs import RegisterExecutorsDetails
from gpuqueue.domain.endpoints import OLLAMA
from gpuqueue.domain.errors import ConfigurationError, NotImportable, ProcessDied
from gpuqueue.domain.job import Job, Lease
from gpuqueue.domain.models import VERBS
from gpuqueue.executors.callables import CallableExecutor, CoroutineExecutor
from gpuqueue.executors.processes import Children, ProcessExecutor
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.site import Site

MOST_DEATHS = 3  # of processes for suspects of one task, before one began with the task, until a worker runs them itself
logger = logging.getLogger("gpuqueue.worker")


class Executors:
    """The executors by task name, including functions registered, or registered again, while the worker is running."""

    def __init__(self, site: Site, gq: GPUQueue, backends: Backends, children: Children) -> None:
        self._settings = settings = site.settings
        self._gq = gq
        self._tasks = gq.tasks
        self._backends = backends
        self._children = children
        self._of_plugins: dict[str, AnyExecutor] = {}
        details = RegisterExecutorsDetails(settings.backends, settings.models, settings.devices)
        for _, answer in site.plugins.each("register_executors", details):
            self._of_plugins = {**answer, **self._of_plugins}
        self._of_functions: dict[str, tuple[Task[..., Any], AnyExecutor]] = {}
        self._of_suspects: dict[str, tuple[Task[..., Any], InOwnProcess | None]] = {}
        for name in self._tasks:
            self.named(name)
        known = {*self._of_plugins, *self._of_functions}
        self._asynchronous = frozenset(name for name in known if self._is_asynchronous(name))
        self._seen = {name: self._tasks.get(name) for name in self._asynchronous}  # as registered when `_asynchronous` was set

    def asynchronous(self) -> frozenset[str]:
        """Return the tasks that run on the event loop; one registered after the start waits for the loop in a thread."""
        for name, task in self._seen.items():
            if self._tasks.get(name) is not task:  # registered again, perhaps as a plain function
                self._seen = {known: self._tasks.get(known) for known in self._seen}
                self._asynchronous = frozenset(known for known in self._seen if self._is_asynchronous(known))
                break
        return self._asynchronous

    def _is_asynchronous(self, name: str) -> bool:
        try:
            found = self.named(name)
            return found is not None and is_async(found)
        except Exception:  # the task's own jobs end with this error; it must not keep other jobs from being claimed
            return False

    def named(self, name: str) -> AnyExecutor | None:
        """Find the executor of a task; None when this worker does not know the task."""
        task = self._tasks.get(name)
        made = self._of_functions.get(name)
        if made is not None and made[0] is task:
            return made[1]
        if task is None and name not in self._of_plugins:
            task = self._gq.find_task(name)
        if task is None or task.function is None:
            return self._of_plugins.get(name)
        made = self._of_functions[name] = task, self._make(task)
        return made[1]

    def of(self, lease: Lease) -> AnyExecutor | None:
        """Find the executor of an attempt: a verb of Ollama runs on the backend of its placement."""
        if lease.crashes is not None and (alone := self._of_suspect(lease.task)) is not None:
            return alone
        backend = self._backends.of(lease) if lease.task in VERBS else None
        return self.named(lease.task if backend is None else lease.task.replace(OLLAMA, backend.name, 1))

    def is_preemptible(self, name: str) -> bool:
        return self._has(name, "preemptible")

    def continues(self, job: Job) -> bool:
        """Whether a preempted attempt's output would be continued by the next one."""
        try:
            asked = getattr(self.named(job.task), "continues", None)
            return asked is not None and bool(asked(job.arguments, job.model))
        except Exception:  # as above
            return False

    def is_isolated(self, lease: Lease) -> bool:
        """Whether the attempt runs in a separate process."""
        try:
            return bool(getattr(self.of(lease), "isolated", False))
        except Exception:  # as above
            return False

    def _has(self, name: str, attribute: str) -> bool:
        try:
            return bool(getattr(self.named(name), attribute, False))
        except Exception:  # as above
            return False

    def where_alone(self, name: str) -> Literal["process", "worker"] | None:
        """Return where a suspect of this task can run alone; None when this worker does not know the task."""
        try:
            if self._of_suspect(name) is not None:
                return "process"
            return None if self.named(name) is None else "worker"
        except Exception:  # as above
            return "worker"

    def _of_suspect(self, name: str) -> InOwnProcess | None:
        """Find the executor of a task's suspects, None if no process can import the task."""
        self.named(name)  # which may import and register it
        task = self._tasks.get(name)
        if task is None:
            return None
        made = self._of_suspects.get(name)
        if made is None or made[0] is not task:
            function = task.in_process
            can = function is not None and os.name == "posix" and _is_found_by_name(function)
            made = self._of_suspects[name] = task, InOwnProcess(self._process(task, function)) if can and function else None
        return made[1] if made[1] is not None and made[1].can_start else None

    def _make(self, task: Task[..., Any]) -> AnyExecutor:
        assert task.function is not None
        if task.isolate:
            return self._isolated(task)
        if inspect.iscoroutinefunction(task.function):
            return CoroutineExecutor(task.function, preemptible=task.preemptible)
        return CallableExecutor(task.function, preemptible=task.preemptible)

    def _isolated(self, task: Task[..., Any]) -> Executor:
        if os.name != "posix":
            raise ConfigurationError(f"task {task.name!r}: isolate=True requires Linux or macOS")
        assert task.function is not None
        return self._process(task, task.function)

    def _process(self, task: Task[..., Any], function: Callable[..., Any]) -> ProcessExecutor:
        return ProcessExecutor(
            self._children,
            {device.name: device for device in self._settings.devices},
            module=module_of(function),
            name=function.__qualname__,
            lease_s=self._gq.config.worker.lease_s,
            limit_bytes=self._gq.config.max_payload_bytes,
            preemptible=task.preemptible,
        )


class InOwnProcess:
    """Runs suspects of one task, each in a process that runs only this job; gives back those of a task that none can import."""

    isolated = True

    def __init__(self, executor: ProcessExecutor) -> None:
        self._executor = executor
        self.preemptible = executor.preemptible
        self.can_start = True
        self._deaths_before_it = 0

    def run(self, context: AttemptContext) -> Any:
        try:
            return self._executor.run(context)
        except (NotImportable, ProcessDied) as error:
            if isinstance(error, ProcessDied) and error.began:
                raise
            self._deaths_before_it += 1  # the system may have killed one that was about to begin
            if isinstance(error, NotImportable) or self._deaths_before_it >= MOST_DEATHS:
                self.can_start = False
                lease = context.lease
                logger.warning(
                    "job %d: no process can import task %s, so the job will run alone in a worker: %s",
                    lease.job_id,
                    lease.task,
                    error,
                )
            raise AttemptInterrupted(f"no process could run the task: {error}") from None


def _is_found_by_name(function: Callable[..., Any]) -> bool:
    """Whether another process finds this function in its module under its name."""
    module = module_of(function)
    found: Any = sys.modules.get("__main__" if function.__module__ == "__main__" else module)
    if module == "__main__" or found is None:
        return False
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return inspect.unwrap(getattr(found, "function", None) or found) is inspect.unwrap(function) if found else False
