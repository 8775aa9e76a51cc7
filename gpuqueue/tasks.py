"""Owns tasks: a registered function or executor verb, its arguments and its jobs' defaults; stores nothing."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

from gpuqueue.errors import UsageError, did_you_mean
from gpuqueue.options import JobOptions, Options, merged, read_options

if TYPE_CHECKING:
    from gpuqueue.handle import JobHandle
    from gpuqueue.queue import GPUQueue

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned", covariant=True)


class Task(Generic[Parameters, Returned]):
    """A registered function or executor verb. Call it to run the function here; `enqueue` makes it a job.

    Returned by `@gq.task`.
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
        self.arguments_name = f"the arguments of {name}"
        self.completed: tuple[JobOptions, Any, JobOptions] | None = None  # kept by whoever enqueues
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

    def using(self, **options: Unpack[Options]) -> Task[Parameters, Returned]:
        """Return this task with other options for the jobs enqueued through it. Raises: UsageError naming the option."""
        made = copy(self)
        made.defaults = merged(read_options(options), self.defaults)
        return made

    @property
    def place(self) -> object:
        """Where the function was written: two tasks of one name are the same when this is."""
        code = getattr(self.function, "__code__", None)
        return (code.co_filename, code.co_firstlineno) if code else self.function

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
