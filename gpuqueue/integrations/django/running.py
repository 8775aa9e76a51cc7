"""Runs a Django task in a worker, with its context, its signals and Django's connections; claims and writes nothing."""

from __future__ import annotations

import inspect
from asyncio import CancelledError
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from traceback import format_exception
from typing import Any, Protocol

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.utils import timezone

from gpuqueue.client.async_twins import in_thread
from gpuqueue.client.tasks import Task
from gpuqueue.config.loading import Config
from gpuqueue.contract.current_job import current_job
from gpuqueue.contract.executor import AttemptContext, AttemptInterrupted
from gpuqueue.contract.reads import Reads
from gpuqueue.domain.errors import AttemptTimedOut, BackendUnavailable, CallerFault, PayloadError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.json_text import to_json
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.verdicts import DEFAULT_RULES, Discard, Retry, Snooze
from gpuqueue.integrations.django.results import change, result_of
from gpuqueue.integrations.django.tasks_api import (
    TaskContext,
    TaskError,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)


class RunsTasks(Protocol):
    """The part of a queue object that running a Django task needs."""

    @property
    def alias(self) -> str: ...

    @property
    def config(self) -> Config: ...

    @property
    def runs_here(self) -> bool: ...

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]: ...

    def queue_settings(self, name: str, /) -> QueueSettings: ...

    def rows(self) -> AbstractContextManager[Reads]: ...


def runner(gq: RunsTasks, function: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function that a worker calls with a job's arguments; async if the task is."""
    if inspect.iscoroutinefunction(function) and not gq.runs_here:

        async def arun(**arguments: Any) -> Any:
            return await _arun(gq, arguments)

        return arun

    def run(**arguments: Any) -> Any:
        return run_here(gq, arguments)

    return run


def run_here(gq: RunsTasks, arguments: Mapping[str, Any]) -> Any:
    """Run the current job's task in this thread. Raises: what the task raises."""
    close = close_old_connections if not gq.runs_here else lambda: None  # the caller still uses them
    close()
    try:
        attempt = _Attempt(gq, arguments)
        _tell(task_started, attempt)
        try:
            value = attempt.checked(attempt.task.call(*attempt.args, **attempt.kwargs))
        except BaseException as error:
            if attempt.has_failed(error):
                _tell(task_finished, attempt)  # from within the block that handles it, where receivers look for the error
            raise
        _tell(task_finished, attempt)
        return value
    finally:
        close()


async def _arun(gq: RunsTasks, arguments: Mapping[str, Any]) -> Any:
    # Receivers run one after another, in the thread where async code talks to Django's databases, and where asgiref lets them
    # find the error that is being handled here.
    close, tell = sync_to_async(close_old_connections), sync_to_async(_tell)
    await close()
    try:
        attempt = await in_thread(_Attempt, gq, arguments)
        await tell(task_started, attempt)
        try:
            value = attempt.checked(await attempt.task.func(*attempt.args, **attempt.kwargs))
        except BaseException as error:
            if attempt.has_failed(error):
                await tell(task_finished, attempt)
            raise
        await tell(task_finished, attempt)
        return value
    finally:
        await close()


def _tell(signal: Any, attempt: _Attempt) -> None:
    signal.send_robust(attempt.sender, task_result=attempt.result)


class _Attempt:
    """One attempt of a Django task, with its TaskResult."""

    def __init__(self, gq: RunsTasks, arguments: Mapping[str, Any]) -> None:
        self._gq = gq
        self._context: AttemptContext = current_job()._context
        with gq.rows() as reads:
            self.result = result_of(reads, reads.job(self._lease.job_id), gq.alias)
        self.task = self.result.task
        self.sender = type(self.task.get_backend())
        context = [TaskContext(task_result=self.result)] if self.task.takes_context else []
        self.args = [*context, *arguments.get("args", ())]
        self.kwargs = arguments.get("kwargs", {})

    @property
    def _lease(self) -> Lease:
        return self._context.lease

    def checked(self, value: Any) -> Any:
        """Return the task's return value as JSON stores it. Raises: TypeError; Discard if it cannot be stored."""
        value = normalize_json(value)
        try:
            to_json(value, limit_bytes=self._gq.config.max_payload_bytes, what=f"the result of job {self._lease.job_id}")
        except PayloadError as error:
            raise Discard(str(error), code="result") from None  # trying again would only compute the same result
        self._ended(TaskResultStatus.SUCCESSFUL, _return_value=value)
        return value

    def has_failed(self, error: BaseException) -> bool:
        """Note a failure; returns whether it ends the job, as far as is known before the policies decide.

        A cancellation is not a failure: `task_finished` is not sent for it, because Django's own receiver would log an error
        with a traceback, which reaches administrators' mail and error monitoring.
        """
        if not self._is_final(error):
            return False
        shown: BaseException = error
        if isinstance(error, AttemptInterrupted | CancelledError):
            shown = AttemptTimedOut("ran longer than its timeout")
        kind = type(shown)
        trace = "".join(format_exception(error))
        self.result.errors.append(TaskError(exception_class_path=f"{kind.__module__}.{kind.__qualname__}", traceback=trace))
        self._ended(TaskResultStatus.FAILED)
        return True

    def _ended(self, status: Any, **changes: Any) -> None:
        change(self.result, {"status": status, "finished_at": timezone.now(), **changes})

    def _is_final(self, error: BaseException) -> bool:
        lease, interruption = self._lease, self._context.interruption
        if isinstance(error, AttemptInterrupted | CancelledError) and interruption is not None:
            if interruption != "timed_out":
                return False
            error = AttemptTimedOut("")
        if isinstance(error, Discard | CallerFault):
            return True
        if isinstance(error, Snooze):
            return False
        if isinstance(error, BackendUnavailable) and self._gq.queue_settings(lease.queue).when_unavailable != "reject":
            return False
        known = self._gq.tasks.get(lease.task)
        rules = DEFAULT_RULES if known is None else known.rules
        return lease.attempt >= lease.max_attempts or (not isinstance(error, Retry) and rules.is_final(error))
