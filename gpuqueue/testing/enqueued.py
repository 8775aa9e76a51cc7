"""Finds, in a test, the jobs that the tested code has enqueued; runs none of them.

send_all()
job = assert_enqueued(send_reminder, rfa_id=7)
assert len(enqueued(send_reminder.using(queue="rfa-reminders"))) == 3
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Signature, Task
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import Job
from gpuqueue.domain.units import to_us

__all__ = ["assert_enqueued", "assert_not_enqueued", "enqueued"]

LISTED_AT_MOST = 20
READ_AT_ONCE = 500


class FrameworkTask(Protocol):
    """A Django task, whose backend has a queue object that knows it."""

    def get_backend(self) -> Any: ...


def enqueued(task: Task[..., Any] | str | FrameworkTask, /, *args: Any, **arguments: Any) -> list[JobHandle]:
    """Return the jobs of a task that have been enqueued, in order, whatever their state now.

    Returns only jobs with these arguments; they may have more. Options that the task was given with `using` count too:
    `enqueued(send.using(queue="mail", delay="1h"), to="ana")`. A task's name needs the queue object: `enqueued("send", gq)`.
    A Django task's arguments are given as its function takes them: `enqueued(send, 7)`; defaults count as arguments.
    Raises: UsageError for an argument that the task does not take, or a name without a queue object.
    """
    sought = _sought(task, args, arguments)
    return [JobHandle(sought.gq, job.id, job) for job in _jobs(sought.gq) if job.task == sought.name and sought.fits(job)]


def assert_enqueued(task: Task[..., Any] | str | FrameworkTask, /, *args: Any, **arguments: Any) -> JobHandle:
    """Fail unless `enqueued` finds a job, listing the jobs that were enqueued; returns the last job found."""
    __tracebackhide__ = True
    found = enqueued(task, *args, **arguments)
    if not found:
        sought = _sought(task, args, arguments)
        jobs = _jobs(sought.gq)
        others = _listed("these jobs were", jobs, sought) if jobs else "no job was enqueued at all"
        raise AssertionError(f"no job of {sought} was enqueued; {others}")
    return found[-1]


def assert_not_enqueued(task: Task[..., Any] | str | FrameworkTask, /, *args: Any, **arguments: Any) -> None:
    """Fail if `enqueued` finds a job."""
    __tracebackhide__ = True
    found = enqueued(task, *args, **arguments)
    if found:
        sought = _sought(task, args, arguments)
        raise AssertionError(_listed(f"a job of {sought} was enqueued", [job.record for job in found], sought))


@dataclass(frozen=True, slots=True)
class _Sought:
    """The properties that a job must have to be found."""

    gq: GPUQueue
    name: str
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]  # those that `using` has changed
    stored: Mapping[str, Any] = field(default_factory=dict)  # what a framework stores in addition to the arguments

    def fits(self, job: Job) -> bool:
        has = self.arguments_of(job)
        return (
            all(name in has and _as_stored(has[name]) == _as_stored(value) for name, value in self.arguments.items())
            and all(_OPTIONS[name](job) == value for name, value in self.options.items())
            and all(job.arguments.get(name) == value for name, value in self.stored.items())
        )

    def arguments_of(self, job: Job) -> Mapping[str, Any]:
        """A job's arguments by name; a framework's queue object knows those of its tasks."""
        named: Mapping[str, Any] = getattr(self.gq, "named_arguments", lambda job: job.arguments)(job)
        return named

    def __str__(self) -> str:
        options = ", ".join(f"{option}={value!r}" for option, value in {**self.options, **self.stored}.items())
        return f"{self.name}({_call(self.arguments)}){options and f' with {options}'}"


def _sought(task: Task[..., Any] | str | FrameworkTask, args: Sequence[Any], arguments: Mapping[str, Any]) -> _Sought:
    if not isinstance(task, Task | str):
        gq = getattr(task.get_backend(), "gq", None) if hasattr(task, "get_backend") else None  # of a Django task
        if gq is None:
            raise UsageError(f"{task!r} is not a gpuqueue task or the name of one")
        return _Sought(gq, *gq.sought(task, args, arguments))
    name = task if isinstance(task, str) else task.name
    if args and isinstance(args[0], GPUQueue):
        gq, args = args[0], args[1:]
    elif isinstance(task, str):
        raise UsageError(
            f"{name!r} is a task's name: pass its queue object too, assert_enqueued({name!r}, gq, …), or pass the task"
        )
    else:
        gq = cast(GPUQueue, task._gq)
    if args:
        raise UsageError(f"{name}: pass arguments by name, as they are stored")
    known = gq.tasks.get(name) if isinstance(task, str) else task
    if known is not None:
        Signature(frozenset(), known.signature.allowed).check(name, arguments)
    return _Sought(gq, name, arguments, _options(task))


def _jobs(gq: GPUQueue) -> list[Job]:
    """Return all jobs in order; inside a Django transaction, as that transaction sees them."""
    found: list[Job] = []
    with getattr(gq, "rows", gq.store.snapshot)() as reads:
        after: int | None = None
        while page := reads.jobs(queue=None, state=None, limit=READ_AT_ONCE, after=after):
            found += page
            after = page[-1].id
    return found[::-1]


def _as_stored(value: Any) -> Any:
    """Return the value as JSON stores it; unchanged if it has no JSON form, such as an object that equals many."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return value


def _options(task: Task[..., Any] | str) -> dict[str, Any]:
    """Return the options that `using` has changed."""
    if isinstance(task, str):
        return {}
    registered = cast(GPUQueue, task._gq).tasks.get(task.name)
    before = None if registered is None else registered.defaults
    asked = {name: getattr(task.defaults, name) for name in _OPTIONS}
    return {name: value for name, value in asked.items() if value != getattr(before, name, None)}


_OPTIONS: Mapping[str, Callable[[Job], Any]] = {
    "queue": lambda job: job.queue,
    "priority": lambda job: job.priority,
    "max_attempts": lambda job: job.max_attempts,
    "timeout_s": lambda job: job.timeout_s,
    "delay_s": lambda job: (job.scheduled_at - job.enqueued_at).total_seconds(),
    "at_us": lambda job: to_us(job.scheduled_at),
    "expires_in_s": lambda job: None if job.expires_at is None else (job.expires_at - job.enqueued_at).total_seconds(),
    "vram_bytes": lambda job: job.wanted_bytes,
    "device": lambda job: job.wanted_device,
    "fallback": lambda job: job.fallback,
    "tags": lambda job: job.tags,
}


def _listed(title: str, jobs: Sequence[Job], sought: _Sought) -> str:
    lines = [f"  job {job.id}: {job.task}({_call(sought.arguments_of(job))}) in {job.queue}, {job.state}" for job in jobs]
    more = [f"  … and {len(lines) - LISTED_AT_MOST} more"] if len(lines) > LISTED_AT_MOST else []
    return "\n".join([f"{title}:", *lines[:LISTED_AT_MOST], *more])


def _call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
