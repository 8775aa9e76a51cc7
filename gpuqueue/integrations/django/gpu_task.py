"""Owns the task that this backend's decorator makes, with what it asks of the GPU; stores and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from inspect import iscoroutinefunction
from typing import Any, overload

from django.utils import timezone

from gpuqueue.client.options import read_options
from gpuqueue.domain.backoff import Backoff
from gpuqueue.domain.errors import UsageError, did_you_mean
from gpuqueue.domain.units import Duration
from gpuqueue.domain.verdicts import RetryRules, read_rules
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS, InvalidTask, Task, task_backends

__all__ = ["GPUTask", "task"]

# The tasks that were made in this process: {backend's alias: {path: task}}, each as its decorator made it.
declared: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUTask(Task):
    """A Django task that may ask for more than a function's call; None leaves it to the queue.

    `vram` and `model` are the device memory that it needs, and the model whose memory that is: on a queue with `gpu = true` the
    model's size is known or learned, others make room for it, and it is unloaded afterwards. The rest is as in
    `gpuqueue.GPUQueue.task`.
    """

    vram: str | int | None = None
    model: str | None = None
    device: str | None = None
    timeout: Duration | None = None
    max_attempts: int | None = None
    expires_in: Duration | None = None
    tags: Iterable[str] = ()
    retry_on: Any = None
    discard_on: Any = ()
    backoff: Backoff | Callable[[int], Duration] | str | None = None
    preemptible: bool = False
    isolate: bool = False

    def using(self, **changes: Any) -> GPUTask:
        """Return this task with other defaults: those of Django's tasks, and this one's own."""
        for name in changes:
            if name not in CHANGEABLE:
                raise TypeError(f"using() got an unexpected keyword argument {name!r}; it takes {', '.join(CHANGEABLE)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


OWN = tuple(field.name for field in fields(GPUTask) if field.name not in {known.name for known in fields(Task)})
JOB_OPTIONS = ("vram", "device", "timeout", "max_attempts", "expires_in", "tags")  # named as `gpuqueue.client.options` names them
CHANGEABLE = ("priority", "queue_name", "run_after", "backend", *OWN)


def options_of(task: Any) -> dict[str, Any]:
    """Collect what a Django task asks for, named as gpuqueue names it."""
    return {name: getattr(task, name) for name in JOB_OPTIONS if getattr(task, name, None)}


def asked_of(task: Any) -> dict[str, Any]:
    """Collect all that a Django task asks of its jobs, named as gpuqueue names it."""
    at = task.run_after
    return {
        **options_of(task),
        "queue": task.queue_name,
        "priority": task.priority or None,
        "at": at if at is None or timezone.is_aware(at) else timezone.make_aware(at),
    }


def rules_of(task: Any) -> RetryRules:
    """Read how a Django task's failures are taken. Raises: UsageError naming the setting."""
    return read_rules(getattr(task, "retry_on", None), getattr(task, "discard_on", ()), getattr(task, "backoff", None))


def check_options(task: Any) -> None:
    """Raises: InvalidTask for what gpuqueue does not take."""
    try:
        read_options(options_of(task))
        rules_of(task)
        if getattr(task, "isolate", False) and iscoroutinefunction(task.func):
            raise UsageError("isolate=True is for a plain function; an async one would not wait for it")
    except UsageError as error:
        raise InvalidTask(f"{task.module_path}: {error}") from None


@overload
def task(function: Callable[..., Any], /) -> GPUTask: ...


@overload
def task(
    *,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = DEFAULT_ALIAS,
    takes_context: bool = False,
    **options: Any,
) -> Callable[[Callable[..., Any]], GPUTask]: ...


def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    priority: int = 0,
    queue_name: str = "default",
    backend: str = DEFAULT_ALIAS,
    takes_context: bool = False,
    **options: Any,
) -> Any:
    """Make a function a task, as Django's decorator of the same name does; takes `vram=` and the like on every Django.

    Django 6.0's own decorator takes no options of a backend's, that of 6.1 and of the backport does.
    """
    if "run_after" in options:
        raise TypeError("run_after is said where a task is enqueued: task.using(run_after=…)")

    def decorated(function: Callable[..., Any]) -> Any:
        task_class = task_backends[backend].task_class
        if options:
            _expect_options(options, backend, task_class)
        return task_class(
            func=function,
            priority=priority,
            queue_name=queue_name,
            backend=backend,
            takes_context=takes_context,
            run_after=None,
            **options,
        )

    return decorated if function is None else decorated(function)


def _expect_options(options: dict[str, Any], alias: str, task_class: Any) -> None:
    """Raises: TypeError for what such a task does not take."""
    known = sorted({field.name for field in fields(task_class)} - {"func", "run_after"})
    for name in options:
        if name in known:
            continue
        if name in OWN:  # of a backend that is not gpuqueue's
            raise TypeError(
                f"task() got {name!r}, which TASKS[{alias!r}], {type(task_backends[alias]).__name__}, does not take; set "
                '"BACKEND": "gpuqueue.integrations.django.Backend" there'
            )
        raise TypeError(f"task() takes no option {name!r}{did_you_mean(name, known)}; it takes {', '.join(known)}")
