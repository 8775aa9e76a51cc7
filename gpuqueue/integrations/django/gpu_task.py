"""Defines the task that this backend's decorator makes, with its GPU options; stores and runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from inspect import iscoroutinefunction
from typing import Any, overload

from django.utils import timezone

from gpuqueue.client.options import read_flag, read_options
from gpuqueue.domain.backoff import Backoff
from gpuqueue.domain.errors import UsageError, did_you_mean
from gpuqueue.domain.names import is_name
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.units import Duration
from gpuqueue.domain.verdicts import RetryRules, read_rules
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS, InvalidTask, Task, task_backends

__all__ = ["GPUTask", "task"]

# The tasks that were made in this process: {backend's alias: {path: task}}, each as its decorator made it.
declared: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUTask(Task):
    """A Django task with gpuqueue's options; None leaves an option to the queue.

    `vram` is the device memory that the task needs, and `model` the model that takes it: on a queue with `gpu = true` the model's
    size is known or learned, other models are unloaded for it, and it is unloaded afterwards. The other options are those of
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
        """Return this task with other defaults, for Django's options and gpuqueue's own."""
        for name in changes:
            if name not in CHANGEABLE:
                raise TypeError(f"using() got an unexpected keyword argument {name!r}; it takes {', '.join(CHANGEABLE)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


OWN = tuple(field.name for field in fields(GPUTask) if field.name not in {known.name for known in fields(Task)})
JOB_OPTIONS = ("vram", "device", "timeout", "max_attempts", "expires_in", "tags")  # named as `gpuqueue.client.options` names them
CHANGEABLE = ("priority", "queue_name", "run_after", "backend", *OWN)


def options_of(task: Any) -> dict[str, Any]:
    """Collect a Django task's own options, named as gpuqueue names them."""
    return {name: getattr(task, name) for name in JOB_OPTIONS if getattr(task, name, None) is not None}


def asked_of(task: Any) -> dict[str, Any]:
    """Collect all job options of a Django task, named as gpuqueue names them."""
    at = task.run_after
    return {
        **options_of(task),
        "queue": task.queue_name,
        "priority": task.priority or None,
        "at": at if not isinstance(at, datetime) or timezone.is_aware(at) else timezone.make_aware(at),
    }


def rules_of(task: Any) -> RetryRules:
    """Read a Django task's retry rules. Raises: UsageError naming the setting."""
    return read_rules(getattr(task, "retry_on", None), getattr(task, "discard_on", ()), getattr(task, "backoff", None))


def check_options(task: Any) -> None:
    """Raises: InvalidTask for options that gpuqueue does not take."""
    try:
        read_options(asked_of(task))
        rules_of(task)
        flags = {name: read_flag(name, getattr(task, name, False)) for name in ("isolate", "preemptible")}
        model = getattr(task, "model", None)
        if model is not None and not is_name(model):
            raise UsageError(f"model must be a non-empty string, not {safe_repr(model)}")
        if flags["isolate"] and iscoroutinefunction(task.func):
            raise UsageError("isolate=True needs a plain function, not an async one")
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
    """Make a function a task, like Django's decorator of the same name; takes options such as `vram=` on every Django.

    Django 6.0's own decorator takes no backend options; those of Django 6.1 and of the backport do.
    """
    if "run_after" in options:
        raise TypeError("pass run_after where the task is enqueued: task.using(run_after=…)")

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
    """Raises: TypeError for options that such a task does not take."""
    known = sorted({field.name for field in fields(task_class)} - {"func", "run_after"})
    for name in options:
        if name in known:
            continue
        if name in OWN:  # and the backend is not gpuqueue's
            raise TypeError(
                f"task() got {name!r}, which TASKS[{alias!r}] ({type(task_backends[alias]).__name__}) does not take. Set "
                '"BACKEND": "gpuqueue.integrations.django.Backend" there'
            )
        raise TypeError(f"task() got an unknown option {name!r}{did_you_mean(name, known)}; it takes {', '.join(known)}")
