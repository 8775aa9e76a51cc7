"""Defines tasks: a registered function or executor verb, its arguments and its jobs' defaults; stores nothing."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast

from gpuqueue.client.handle import JobHandle
from gpuqueue.client.options import DEFAULT_QUEUE, EnqueueOptions, JobOptions, Options, merged, read_flag, read_options
from gpuqueue.contract.current_job import Alone, running
from gpuqueue.domain.backoff import Backoff
from gpuqueue.domain.errors import UsageError, did_you_mean
from gpuqueue.domain.names import is_name
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.units import Duration
from gpuqueue.domain.verdicts import DEFAULT_RULES, RetryRules, read_rules

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned", covariant=True)


class Submits(Protocol):
    """The methods of a queue object that a task uses."""

    def submit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions, /) -> JobHandle: ...

    async def asubmit(self, task: Task[..., Any], arguments: Mapping[str, Any], options: JobOptions, /) -> JobHandle: ...


class TaskSettings(Options, total=False):
    """A task's registration: its name, the options of its jobs, and how a worker runs them.

    `queue` is "default" unless given. `retry_on`: retry only on these errors, up to `max_attempts`; by default on every error.
    `discard_on`: never retry on these. `backoff`: how long to wait between attempts, see `gpuqueue.backoff`.
    `preemptible`: on a device, it may be preempted by a job that comes first; it then ends like a cancelled one, and its job
    starts again later. `isolate`: run the function in its own process, which can be killed and releases all its memory when
    it ends.
    """

    name: str | None
    retry_on: type[BaseException] | Iterable[type[BaseException]] | None
    discard_on: type[BaseException] | Iterable[type[BaseException]]
    backoff: Backoff | Callable[[int], Duration] | str | None
    isolate: bool
    preemptible: bool


class Task(Generic[Parameters, Returned]):
    """A registered function or executor verb. Call it to run the function here; `enqueue` makes it a job.

    Returned by `@gq.task`.
    """

    def __init__(
        self,
        gq: Submits,
        name: str,
        function: Callable[Parameters, Returned] | None,
        defaults: JobOptions,
        *,
        signature: Signature,
        rules: RetryRules = DEFAULT_RULES,
        isolate: bool = False,
        preemptible: bool = False,
        in_process: Callable[..., Any] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.defaults = defaults
        self.signature = signature
        self.rules = rules
        self.isolate = isolate
        self.preemptible = preemptible
        self.in_process = in_process or function  # what a process of the job's own calls
        self.arguments_name = f"the arguments of {name}"
        self.plan: Any = None  # cached by the enqueuer
        self._gq = gq
        if function is not None:
            self.__doc__ = function.__doc__

    @classmethod
    def of(cls, gq: Submits, function: Callable[Parameters, Returned], settings: TaskSettings) -> Task[Parameters, Returned]:
        """Create a task from a function. Raises: UsageError naming the setting."""
        if isinstance(function, Task) or not callable(function):
            raise UsageError(
                f"a task is made from a function, not {safe_repr(function)}; give its settings by name, as in "
                '@gq.task(name="reports.weekly", queue="reports")'
            )
        for option in settings:
            known = TaskSettings.__annotations__
            if option not in known and option != "connection":  # has its own error below
                raise UsageError(f"unknown task option {option!r}{did_you_mean(option, known)}. Options: {', '.join(known)}")
        asked: dict[str, Any] = {"queue": DEFAULT_QUEUE, **settings}
        given_name = asked.pop("name", None)
        if given_name is not None and not is_name(given_name):
            raise UsageError(f"a task's name must be a non-empty string, not {safe_repr(given_name)}")
        name = given_name or task_name(function)
        rules = read_rules(asked.pop("retry_on", None), asked.pop("discard_on", ()), asked.pop("backoff", None))
        isolate = read_flag("isolate", asked.pop("isolate", False))
        if isolate and "<" in function.__qualname__:
            raise UsageError(
                f"task {name!r}: isolate=True runs the function in another process, which must find it by name. "
                f"Move {function.__qualname__} to the top level of its module"
            )
        if isolate and module_of(function) == "__main__":
            raise UsageError(
                f"task {name!r}: isolate=True runs the function in another process, which cannot import it from a notebook or "
                f"an interpreter. Move {function.__qualname__} to a module"
            )
        preemptible = read_flag("preemptible", asked.pop("preemptible", False))
        options = read_options(asked)
        if options.connection is not None:
            raise UsageError(f"task {name!r}: connection is not an option of a task; pass it to using() or enqueue()")
        return cls(
            gq,
            name,
            function,
            options,
            signature=Signature.of(function),
            rules=rules,
            isolate=isolate,
            preemptible=preemptible,
        )

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        """Run the function here and now, without the queue; `current_job()` works and only logs."""
        if self.function is None:
            raise UsageError(f"{self.name} can only run in a worker, by an executor; enqueue it")
        if inspect.iscoroutinefunction(self.function):
            return cast(Returned, self._awaited(*args, **kwargs))
        with running(Alone(self.name)):
            return self.function(*args, **kwargs)

    async def _awaited(self, *args: Any, **kwargs: Any) -> Any:
        with running(Alone(self.name)):
            return await cast(Callable[..., Any], self.function)(*args, **kwargs)

    def enqueue(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> JobHandle:
        """Store a job of this task; arguments are passed by name.

        Raises: UsageError for wrong arguments or options; PayloadError; StoreError.
        """
        return self._gq.submit(self, self._named(args, kwargs) if args else kwargs, self.defaults)

    async def aenqueue(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> JobHandle:
        """The async twin of `enqueue`."""
        return await self._gq.asubmit(self, self._named(args, kwargs), self.defaults)

    def using(self, **options: Unpack[EnqueueOptions]) -> Task[Parameters, Returned]:
        """Return this task with other options for jobs enqueued through it. Raises: UsageError naming the option."""
        made = copy(self)
        made.defaults = merged(read_options(options), self.defaults)
        return made

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        if args:
            raise UsageError(f"{self.name}: pass arguments by name; they are stored as JSON by name")
        return kwargs

    @property
    def place(self) -> object:
        """The function's source location: two tasks with one name are the same if it is equal."""
        code = getattr(self.function, "__code__", None)
        return (code.co_filename, code.co_firstlineno) if code else self.function

    def __repr__(self) -> str:
        return f"<task {self.name}>"


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments that a task takes; `allowed` None means any."""

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
                raise UsageError(f"{function.__qualname__}: parameter {name!r} is positional-only; jobs pass arguments by name")
            if parameter.kind is not parameter.VAR_POSITIONAL:
                allowed.add(name)
                if parameter.default is parameter.empty:
                    required.add(name)
        return cls(frozenset(required), frozenset(allowed))

    def check(self, task: str, arguments: Mapping[str, Any]) -> None:
        """Check the arguments. Raises: UsageError naming the wrong or missing ones."""
        given = arguments.keys()
        if self.allowed is not None and not given <= self.allowed:
            wrong = sorted(map(str, given - self.allowed))[0]
            takes = ", ".join(sorted(self.allowed)) or "none"
            raise UsageError(f"{task}: unknown argument {wrong!r}{did_you_mean(wrong, self.allowed)}. Arguments: {takes}")
        if not self.required <= given:
            raise UsageError(f"{task}: missing argument(s): {', '.join(sorted(self.required - given))}")


def task_name(function: Callable[..., Any]) -> str:
    """Return a function's task name: its module and its name there."""
    return f"{module_of(function)}.{function.__qualname__}"


def module_of(function: Callable[..., Any]) -> str:
    """Return a function's module; for a script run as `__main__`, the name under which it is imported."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        specification = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if specification is not None:
            module = specification.name
        elif file is not None:
            module = os.path.splitext(os.path.basename(file))[0]
    return module
