"""Owns the public names that a plugin is written with: its marker, what hooks get and answer, settings; adds nothing of its own.

    from gpuqueue.plugins import ConfigureDetails, Hold, QueueHoldDetails, hookimpl

A plugin is an object, a class or a module with functions named like hooks and marked with `hookimpl`; `gpuqueue.hookspecs`
has all hooks on one page. `Table` is how a plugin reads its own section of the configuration: `expect` the keys there are,
then read each with `integer`, `number`, `text`, `texts`, `choice`, `flag`, `duration` or `size`. For a rule that these do not
have, `get(key)` returns the `Setting`, and `setting.error("…")` or `table.error("…")` make the error that names its place.
"""

from __future__ import annotations

from gpuqueue.config_table import Setting, Table
from gpuqueue.devices import Device
from gpuqueue.domain import (
    Backend,
    BackendSettings,
    CleanUp,
    Demand,
    DeviceSettings,
    DeviceView,
    Event,
    Hold,
    Job,
    Lease,
    ModelSettings,
    Pause,
    Placement,
    QueueSettings,
    QueueView,
    Reading,
    Reservation,
    Resident,
    State,
    View,
    Wait,
    WorkerInfo,
)
from gpuqueue.errors import (
    AttemptTimedOut,
    BackendUnavailable,
    CallerFault,
    ConfigurationError,
    ExecutionError,
    OutOfMemory,
    RunnerCrashed,
)
from gpuqueue.executors import AsyncExecutor, AttemptContext, AttemptInterrupted, Executor
from gpuqueue.hookspecs import (
    AttemptFailedDetails,
    CleanUpAttemptDetails,
    ConfigureDetails,
    JobDemandDetails,
    OrderCandidatesDetails,
    PlaceJobDetails,
    PrepareAttemptDetails,
    QueueHoldDetails,
    RetentionDetails,
    hookimpl,
)
from gpuqueue.verdicts import Discard, Retry, RetryRules, Snooze

__all__ = [
    "AsyncExecutor",
    "AttemptContext",
    "AttemptFailedDetails",
    "AttemptInterrupted",
    "AttemptTimedOut",
    "Backend",
    "BackendSettings",
    "BackendUnavailable",
    "CallerFault",
    "CleanUp",
    "CleanUpAttemptDetails",
    "ConfigurationError",
    "ConfigureDetails",
    "Demand",
    "Device",
    "DeviceSettings",
    "DeviceView",
    "Discard",
    "Event",
    "ExecutionError",
    "Executor",
    "Hold",
    "Job",
    "JobDemandDetails",
    "Lease",
    "ModelSettings",
    "OrderCandidatesDetails",
    "OutOfMemory",
    "Pause",
    "PlaceJobDetails",
    "Placement",
    "PrepareAttemptDetails",
    "QueueHoldDetails",
    "QueueSettings",
    "QueueView",
    "Reading",
    "Reservation",
    "Resident",
    "RetentionDetails",
    "Retry",
    "RetryRules",
    "RunnerCrashed",
    "Setting",
    "Snooze",
    "State",
    "Table",
    "View",
    "Wait",
    "WorkerInfo",
    "hookimpl",
]
