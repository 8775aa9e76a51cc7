"""Finds the executor that runs a task in this worker: a plugin's, or one for a registered function; runs nothing itself."""

from __future__ import annotations

import inspect
import os
from typing import Any

from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Task, module_of
from gpuqueue.contract.executor import AnyExecutor, Executor, is_async
from gpuqueue.contract.hookspecs import RegisterExecutorsDetails
from gpuqueue.domain.endpoints import OLLAMA
from gpuqueue.domain.errors import ConfigurationError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.models import VERBS
from gpuqueue.executors.callables import CallableExecutor, CoroutineExecutor
from gpuqueue.executors.processes import Children, ProcessExecutor
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.site import Site


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
        backend = self._backends.of(lease) if lease.task in VERBS else None
        return self.named(lease.task if backend is None else lease.task.replace(OLLAMA, backend.name, 1))

    def is_preemptible(self, name: str) -> bool:
        return self._has(name, "preemptible")

    def is_isolated(self, name: str) -> bool:
        return self._has(name, "isolated")

    def _has(self, name: str, attribute: str) -> bool:
        try:
            return bool(getattr(self.named(name), attribute, False))
        except Exception:  # as above
            return False

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
        return ProcessExecutor(
            self._children,
            {device.name: device for device in self._settings.devices},
            module=module_of(task.function),
            name=task.function.__qualname__,
            lease_s=self._gq.config.worker.lease_s,
            limit_bytes=self._gq.config.max_payload_bytes,
            preemptible=task.preemptible,
        )
