"""gpuqueue: a job queue in one SQLite file, for applications whose interactive and background AI work share one small GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.client.tasks import Task
from gpuqueue.config.loading import Config
from gpuqueue.contract.current_job import CurrentJob, current_job
from gpuqueue.domain import backoff
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import (
    ConfigurationError,
    ForkedWithOpenFile,
    GPUQueueError,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    PayloadError,
    PluginFailed,
    ServiceUnavailable,
    StateError,
    StoreBusy,
    StoreError,
    UnknownJob,
    UnknownQueue,
    UnknownTask,
    UsageError,
    WouldDeadlock,
)
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.job import Cancellation, Entry, Event, Job, LogLine, Record, State
from gpuqueue.domain.settings import Rate, WindowRule
from gpuqueue.domain.verdicts import Discard, Retry, Snooze
from gpuqueue.domain.view import ServiceInfo, WorkerInfo

if TYPE_CHECKING:
    from gpuqueue.client.following import Follower, Reader
    from gpuqueue.contract.hookspecs import hookimpl
    from gpuqueue.worker import Worker

__version__ = "0.1.0"
__all__ = [
    "Cancellation",
    "Config",
    "ConfigurationError",
    "CurrentJob",
    "Discard",
    "Entry",
    "Event",
    "Explanation",
    "Follower",
    "ForkedWithOpenFile",
    "GPUQueue",
    "GPUQueueError",
    "Hold",
    "Job",
    "JobCancelled",
    "JobError",
    "JobExpired",
    "JobFailed",
    "JobHandle",
    "LogLine",
    "PayloadError",
    "PluginFailed",
    "Rate",
    "Reader",
    "Record",
    "Retry",
    "ServiceInfo",
    "ServiceUnavailable",
    "Snooze",
    "State",
    "StateError",
    "StoreBusy",
    "StoreError",
    "Task",
    "UnknownJob",
    "UnknownQueue",
    "UnknownTask",
    "UsageError",
    "WindowRule",
    "Worker",
    "WorkerInfo",
    "WouldDeadlock",
    "backoff",
    "current_job",
    "hookimpl",
]


if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name

    def __getattr__(name):
        # A web process that only enqueues does not load the worker or the hooks.
        if name not in _LOADED_LATER:
            raise AttributeError(f"module 'gpuqueue' has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(_LOADED_LATER[name]), name)

    _LOADED_LATER = {
        "Follower": "gpuqueue.client.following",
        "Reader": "gpuqueue.client.following",
        "Worker": "gpuqueue.worker",
        "hookimpl": "gpuqueue.contract.hookspecs",
    }
