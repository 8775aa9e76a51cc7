"""Owns finding, in a test, the jobs that the tested code has enqueued; runs none of them.

send_all()
job = assert_enqueued(send_reminder, rfa_id=7)
assert len(enqueued(send_reminder.using(queue="rfa-reminders"))) == 3
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpuqueue.domain import Job
from gpuqueue.errors import UsageError
from gpuqueue.handle import JobHandle
from gpuqueue.queue import GPUQueue
from gpuqueue.tasks import Signature, Task
from gpuqueue.units import to_us

__all__ = ["assert_enqueued", "assert_not_enqueued", "enqueued"]

LISTED_AT_MOST = 20
READ_AT_ONCE = 500


def enqueued(task: Task[..., Any] | str, gq: GPUQueue | None = None, /, **arguments: Any) -> list[JobHandle]:
    """Return the jobs of a task that have been enqueued, in their order, whatever has become of them since.

    Only those with these arguments; a job may have others beside them. Options that the task was given with `using` count
    too: `enqueued(send.using(queue="mail", delay="1h"), to="ana")`. A task's name needs the queue object.
    Raises: UsageError for an argument that the task does not take, or a name without a queue object.
    """
    known, queue_object = _known(task, gq)
    if known is not None:
        Signature(frozenset(), known.signature.allowed).check(known.name, arguments)
    wanted = {name: _as_stored(value) for name, value in arguments.items()}
    name = task if isinstance(task, str) else task.name
    options = _options(task)
    found = [handle for handle in _jobs(queue_object) if handle.task == name and _fits(handle.record, wanted, options)]
    return found[::-1]


def assert_enqueued(task: Task[..., Any] | str, gq: GPUQueue | None = None, /, **arguments: Any) -> JobHandle:
    """Fail unless a job was enqueued that `enqueued` finds, listing those that were instead; returns the last such job."""
    __tracebackhide__ = True
    found = enqueued(task, gq, **arguments)
    if not found:
        raise AssertionError(f"no job of {_worded(task, arguments)} was enqueued; {_what_was(_known(task, gq)[1])}")
    return found[-1]


def assert_not_enqueued(task: Task[..., Any] | str, gq: GPUQueue | None = None, /, **arguments: Any) -> None:
    """Fail if a job was enqueued that `enqueued` finds."""
    __tracebackhide__ = True
    found = enqueued(task, gq, **arguments)
    if found:
        raise AssertionError(f"a job of {_worded(task, arguments)} was enqueued:\n{_listed(found)}")


def _known(task: Task[..., Any] | str, gq: GPUQueue | None) -> tuple[Task[..., Any] | None, GPUQueue]:
    if isinstance(task, Task):
        return task, gq or task._gq
    if gq is None:
        raise UsageError(
            f"{task!r} is a task's name: say of which queue object, assert_enqueued({task!r}, gq, …), or give the task"
        )
    return gq.tasks.get(task), gq


def _jobs(gq: GPUQueue) -> Iterator[JobHandle]:
    """All jobs, the newest first."""
    after: int | None = None
    while page := gq.jobs(limit=READ_AT_ONCE, after=after):
        yield from page
        after = page[-1].id


def _fits(job: Job, wanted: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    has = job.arguments
    return all(name in has and has[name] == value for name, value in wanted.items()) and all(
        _OPTIONS[name](job) == value for name, value in options.items()
    )


def _as_stored(value: Any) -> Any:
    """What the value is as JSON; as it is where it has no such form, such as an object that equals many."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return value


def _options(task: Task[..., Any] | str) -> dict[str, Any]:
    """What `using` has changed."""
    if isinstance(task, str):
        return {}
    registered = task._gq.tasks.get(task.name)
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


def _worded(task: Task[..., Any] | str, arguments: Mapping[str, Any]) -> str:
    name = task if isinstance(task, str) else task.name
    options = "".join(f", {option}={value!r}" for option, value in _options(task).items())
    return f"{name}({_call(arguments)}){options and f' with {options[2:]}'}"


def _what_was(gq: GPUQueue) -> str:
    jobs = list(_jobs(gq))[::-1]
    return f"these were:\n{_listed(jobs)}" if jobs else "nothing was"


def _listed(jobs: list[JobHandle]) -> str:
    lines = [f"  job {job.id}: {job.task}({_call(job.record.arguments)}) in {job.queue}, {job.state}" for job in jobs]
    more = [f"  … and {len(lines) - LISTED_AT_MOST} more"] if len(lines) > LISTED_AT_MOST else []
    return "\n".join([*lines[:LISTED_AT_MOST], *more])


def _call(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
