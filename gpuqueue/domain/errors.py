"""Defines every error that gpuqueue raises on purpose.

GPUQueueError
├── UsageError                the caller's input is wrong; nothing was changed (command line: exit status 2)
│   ├── ConfigurationError    a configuration file, environment variable or setting
│   ├── UnknownQueue, UnknownTask, UnknownJob
│   ├── PayloadError          arguments or a result are not JSON, or are too large
│   └── StateError            the job's state does not allow this
├── StoreError                the database file cannot be used
│   ├── StoreBusy             could not acquire the write lock in time; nothing was changed
│   ├── ForkedWithOpenFile    this process was forked while the file was open; nothing was changed
│   ├── NotADatabase, NewerSchema, StoreUnwritable, StoreFull, FileReplaced
├── JobError                  how a job ended, raised by `job.result()`
│   ├── JobFailed, JobCancelled, JobExpired, ServiceUnavailable
├── WouldDeadlock             a task waits for a job that cannot end before the task itself does
├── PluginFailed              a plugin raised in a hook, and the caller cannot continue without its answer
├── WorkerFailed              a worker cannot go on; its jobs go back to their queues
└── ExecutionError            raised inside an attempt; classifies its failure
    └── BackendUnavailable, OutOfMemory, Spilled, RunnerCrashed, CallerFault, AttemptTimedOut, ProcessDied, IsolatedFailure
        └── NotImportable
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpuqueue.domain.safe_text import LONGEST_MESSAGE, class_name, safe_repr, safe_text

SHOWN_IDS = 5


class GPUQueueError(Exception):
    """The root of gpuqueue's errors."""


class UsageError(GPUQueueError):
    """The caller's input is wrong; nothing was changed."""


class ConfigurationError(UsageError):
    """A configuration file, an environment variable or a setting is wrong."""


class UnknownQueue(UsageError):
    """No queue has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            f"unknown queue {safe_repr(name)}{did_you_mean(name, names)}. Queues: {', '.join(names) or 'none'}. "
            "A queue exists once it is configured, named by a task, or created with gq.queue(name)"
        )


class UnknownTask(UsageError):
    """No task is registered under this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(
            f"unknown task {safe_repr(name)}{did_you_mean(name, names)}. Tasks: {', '.join(names) or 'none'}. "
            "Register it with @gq.task (a plugin's verb with gq.verb), and import the module that registers it"
        )


class UnknownJob(UsageError):
    """No job has this id (it never existed, its transaction was not committed, or its retention time has passed)."""

    def __init__(self, job_id: int) -> None:
        super().__init__(
            f"unknown job {safe_repr(job_id)}: it never existed, its transaction was not committed, or it finished long ago and "
            "was pruned"
        )


class PayloadError(UsageError):
    """Arguments or a result cannot be stored: not JSON, or larger than the limit."""


class StateError(UsageError):
    """The job is in a state that does not allow this."""


class StoreError(GPUQueueError):
    """The database file cannot be used."""


class StoreBusy(StoreError):
    """Could not acquire the write lock in time; nothing was changed, and the call may be repeated."""


class ForkedWithOpenFile(StoreError):
    """This process was forked while its parent had the file open, so what it wrote could be lost; nothing was changed."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"cannot use {path} in this process: it was forked while {reason}, and what it wrote could be lost. Close the "
            "connection before the fork, start the process with the method `spawn`, or, where a server loads the application "
            "before it forks (--preload), open no connection while the application is loaded"
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ForkedWithOpenFile], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class NotADatabase(StoreError):
    """The file exists but is not a gpuqueue database."""


class NewerSchema(StoreError):
    """The file was written by a newer gpuqueue."""


class StoreUnwritable(StoreError):
    """The file or its folder cannot be written."""


class StoreFull(StoreError):
    """The disk is full; the transaction was rolled back."""


class FileReplaced(StoreError):
    """The file was deleted or replaced while it was open; `job_ids` were stored in it since it was last seen in its place."""

    def __init__(self, path: object, job_ids: Sequence[int]) -> None:
        stored = ""
        if job_ids:
            first, plural = job_ids[:SHOWN_IDS], "s" if len(job_ids) > 1 else ""
            more = f" and {len(job_ids) - SHOWN_IDS} more (the last is {job_ids[-1]})" if len(job_ids) > SHOWN_IDS else ""
            stored = (
                f" Job{plural} {', '.join(map(str, first))}{more} may be only in the old file: "
                f"enqueue {'them' if plural else 'it'} again if {'they are' if plural else 'it is'} missing."
            )
        super().__init__(
            f"{path} was deleted or replaced while this process was using it. This call changed nothing.{stored} "
            "If there is another file now, the next call uses it"
        )
        self.job_ids = tuple(job_ids)


class JobError(GPUQueueError):
    """How a job ended without completing; `job_id` and `code` say which job and why."""

    def __init__(self, message: str, *, job_id: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.job_id = job_id
        self.code = code


class JobFailed(JobError):
    """The job was discarded: it has no attempts left, or its failure is final."""


class JobCancelled(JobError):
    """The job was cancelled."""


class JobExpired(JobError):
    """The job expired before it could start: its `expires_in` had passed."""


class WouldDeadlock(GPUQueueError):
    """A task waits for a job that cannot end before the task itself does; `job_id` is the task's job, `awaited_id` the other."""

    def __init__(self, message: str, *, job_id: int = 0, awaited_id: int = 0) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.awaited_id = awaited_id


class PluginFailed(GPUQueueError):
    """A plugin raised in a hook, or gave an answer that the hook does not allow; `__cause__` is the error.

    `plugin` and `hook` name them. It stops what cannot continue without the answer: creating a queue object (`configure`),
    starting a worker (`register_…`), `gpuqueue db prune` (`retention`). Elsewhere gpuqueue handles it, and holds the queue or the
    job.
    """

    def __init__(self, plugin: str, hook: str, error: BaseException) -> None:
        super().__init__(f"plugin {plugin!r} failed in {hook}: {describe(error)}")
        self.plugin = plugin
        self.hook = hook
        self.__cause__ = error

    def __reduce__(self) -> tuple[type[PluginFailed], tuple[str, str, BaseException | None]]:
        return type(self), (self.plugin, self.hook, self.__cause__)


class WorkerFailed(GPUQueueError):
    """A worker cannot go on, for example because one of its threads keeps failing; its jobs go back to their queues."""


REFUSAL = "AI service temporarily unavailable"


class ServiceUnavailable(JobError):
    """The backend is unavailable, and the job's queue rejects work meanwhile."""


class ExecutionError(GPUQueueError):
    """Raised by an executor to classify a failure; `code` is stored with the job."""

    code = "error"


class BackendUnavailable(ExecutionError):
    """The backend did not answer, or reported that it is busy; `backend` is its name."""

    code = "unavailable"

    def __init__(self, message: str, *, backend: str) -> None:
        super().__init__(message)
        self.backend = backend


class OutOfMemory(ExecutionError):
    """The model did not fit on the device when it was loaded."""

    code = "out_of_memory"


class Spilled(ExecutionError):
    """The model fit on the device only in part, and its settings do not accept that."""

    code = "spilled"


class RunnerCrashed(ExecutionError):
    """The backend's runner died, or its answer ended before it was complete; worth another attempt."""

    code = "runner_crashed"


class CallerFault(ExecutionError):
    """The request itself is wrong (unknown model, bad option); never retried."""

    code = "caller_fault"


class ProcessDied(ExecutionError):
    """A job's process ended before the task returned; `began` says whether it had imported the task by then."""

    code = "process_died"

    def __init__(self, message: str, *, began: bool = True) -> None:
        super().__init__(message)
        self.began = began


class IsolatedFailure(ExecutionError):
    """The error that an isolated task raised in its process; `kinds` are the names of its class and all base classes."""

    def __init__(self, *, code: str, message: str, kinds: Iterable[str], remote_traceback: str) -> None:
        super().__init__(message)
        self.code = code
        self.kinds = frozenset(kinds)
        self.remote_traceback = remote_traceback


class NotImportable(IsolatedFailure):
    """A job's process could not import the task, or not find it in its module."""


class AttemptTimedOut(ExecutionError):
    """The attempt ran longer than its timeout."""

    code = "timed_out"


def describe(error: BaseException) -> str:
    """Describe an error: its class, and its text if it has one. Never raises."""
    name = class_name(error)
    text = safe_text(error, LONGEST_MESSAGE - len(name) - 2)
    return f"{name}: {text}" if text else name


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Suggest the nearest known name as ` (did you mean 'x'?)`; "" when none is near."""
    import difflib  # imported here: it takes 1 ms, and only a mistake needs it

    near = difflib.get_close_matches(name, list(known), n=1) if isinstance(name, str) else ()
    return f" (did you mean {near[0]!r}?)" if near else ""
