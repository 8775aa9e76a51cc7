"""Owns tasks: a registered function or executor verb with its defaults, and what one job of it asks for; stores nothing."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from gpuqueue.errors import UsageError, did_you_mean
from gpuqueue.units import parse_duration, to_us

if TYPE_CHECKING:
    from gpuqueue.handle import JobHandle
    from gpuqueue.queue import GPUQueue

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned", covariant=True)
Duration = str | float | timedelta

LOWEST_PRIORITY, HIGHEST_PRIORITY = -1_000_000, 1_000_000


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a job asks for beside its arguments; None means the task's or the queue's default."""

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    delay_s: float | None = None
    at_us: int | None = None
    expires_in_s: float | None = None
    tags: tuple[str, ...] = ()


def job_options(
    *,
    delay: Duration | None = None,
    at: datetime | None = None,
    priority: int | None = None,
    queue: str | None = None,
    max_attempts: int | None = None,
    timeout: Duration | None = None,
    expires_in: Duration | None = None,
    tags: Iterable[str] = (),
) -> JobOptions:
    """Check and convert a job's options. Raises: UsageError naming the option."""
    if delay is not None and at is not None:
        raise UsageError("give delay or at, not both")
    if priority is not None and not (isinstance(priority, int) and LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY):
        raise UsageError(f"priority must be a whole number from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}, not {priority!r}")
    if max_attempts is not None and not (isinstance(max_attempts, int) and max_attempts >= 1):
        raise UsageError(f"max_attempts must be a whole number of at least 1, not {max_attempts!r}")
    timeout_s = None if timeout is None else parse_duration(timeout, what="timeout")
    if timeout_s == 0:
        raise UsageError("timeout must be longer than 0")
    tags = tags if isinstance(tags, str) or not isinstance(tags, Iterable) else tuple(tags)
    if not isinstance(tags, tuple) or not all(isinstance(tag, str) for tag in tags):
        raise UsageError(f"tags must be a list of texts, not {tags!r}")
    if at is not None and not isinstance(at, datetime):
        raise UsageError(f"at must be an aware datetime, not {at!r}")
    return JobOptions(
        queue=queue,
        priority=priority,
        max_attempts=max_attempts,
        timeout_s=timeout_s,
        delay_s=None if delay is None else parse_duration(delay, what="delay"),
        at_us=None if at is None else to_us(at),
        expires_in_s=None if expires_in is None else parse_duration(expires_in, what="expires_in"),
        tags=tags,
    )


def job_options_of(given: Mapping[str, Any], *, queue: str | None = None) -> JobOptions:
    """Check and convert options given as a mapping. Raises: UsageError naming the option."""
    known = inspect.signature(job_options).parameters
    for name in given:
        if name not in known:
            raise UsageError(f"there is no job option {name!r}{did_you_mean(name, known)}. Options: {', '.join(known)}")
    if queue is not None and "queue" in given:
        raise UsageError("the job option queue is given twice")
    return job_options(**{"queue": queue, **given})


class Task(Generic[Parameters, Returned]):
    """A registered function or executor verb. Call it to run the function here; `enqueue` makes it a job.

    Returned by `@gq.task`. `arguments` names what may be passed, `required` what must be.
    """

    def __init__(
        self,
        gq: GPUQueue,
        name: str,
        function: Callable[Parameters, Returned] | None,
        defaults: JobOptions,
        *,
        signature: Signature,
    ) -> None:
        self.name = name
        self.function = function
        self.defaults = defaults
        self.signature = signature
        self._gq = gq
        if function is not None:
            self.__doc__ = function.__doc__

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        """Run the function here and now, without the queue."""
        if self.function is None:
            raise UsageError(f"{self.name} is run by an executor in a worker; enqueue it")
        return self.function(*args, **kwargs)

    def enqueue(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> JobHandle:
        """Store a job of this task; arguments are passed by name.

        Raises: UsageError for wrong arguments or options; PayloadError; StoreError.
        """
        if args:
            raise UsageError(f"{self.name}: pass arguments by name, they are stored as JSON by name")
        return self._gq.submit(self, kwargs, self.defaults)

    def using(
        self,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        max_attempts: int | None = None,
        timeout: Duration | None = None,
        expires_in: Duration | None = None,
        tags: Iterable[str] = (),
    ) -> Task[Parameters, Returned]:
        """Return this task with other options for the jobs enqueued through it.

        `delay`, `timeout`, `expires_in`: "90s", "5m", seconds or a timedelta. `at`: an aware datetime. `priority`: higher
        runs first. `expires_in`: a job that still waits then is discarded. Raises: UsageError.
        """
        asked = job_options(
            delay=delay,
            at=at,
            priority=priority,
            queue=queue,
            max_attempts=max_attempts,
            timeout=timeout,
            expires_in=expires_in,
            tags=tags,
        )
        return Task(self._gq, self.name, self.function, merged(asked, self.defaults), signature=self.signature)

    def __repr__(self) -> str:
        return f"<task {self.name}>"


@dataclass(frozen=True, slots=True)
class Signature:
    """Which arguments a task takes; `allowed` None takes any."""

    required: frozenset[str]
    allowed: frozenset[str] | None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        required: set[str] = set()
        allowed: set[str] = set()
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                return cls(frozenset(required), None)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise UsageError(f"{function.__qualname__}: parameter {name!r} is positional only; jobs pass arguments by name")
            if parameter.kind is not parameter.VAR_POSITIONAL:
                allowed.add(name)
                if parameter.default is parameter.empty:
                    required.add(name)
        return cls(frozenset(required), frozenset(allowed))

    def check(self, task: str, arguments: Mapping[str, Any]) -> None:
        """Raise a UsageError when the arguments do not fit."""
        given = arguments.keys()
        if self.allowed is not None and not given <= self.allowed:
            wrong = sorted(map(str, given - self.allowed))[0]
            takes = ", ".join(sorted(self.allowed)) or "none"
            raise UsageError(f"{task} takes no argument {wrong!r}{did_you_mean(wrong, self.allowed)}. It takes: {takes}")
        if not self.required <= given:
            raise UsageError(f"{task} needs the argument(s) {', '.join(sorted(self.required - given))}")


def merged(asked: JobOptions, defaults: JobOptions) -> JobOptions:
    """Return `asked`, with the defaults where it says nothing; delay and at replace each other."""
    chosen = {name: getattr(asked, name) for name in JobOptions.__slots__ if getattr(asked, name) not in (None, ())}
    if "delay_s" in chosen or "at_us" in chosen:
        defaults = replace(defaults, delay_s=None, at_us=None)
    return replace(defaults, **chosen)


def task_name(function: Callable[..., Any]) -> str:
    """Name a function by its module and its name there; one of a script run as `__main__` as if it had been imported."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        specification = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if specification is not None:
            module = specification.name
        elif file is not None:
            module = os.path.splitext(os.path.basename(file))[0]
    return f"{module}.{function.__qualname__}"
