"""Exports the public names for writing a plugin: its marker, the hooks' arguments and answers, settings.

    from gpuqueue.plugins import ConfigureDetails, Hold, QueueHoldDetails, hookimpl

A plugin is an object, a class or a module with functions named like hooks and marked with `hookimpl`;
`gpuqueue.contract.hookspecs` has all hooks on one page. A plugin reads its own section of the configuration with `Table`:
`expect` the known keys, then read each with `integer`, `number`, `text`, `texts`, `choice`, `flag`, `duration` or `size`.
For other rules, `get(key)` returns the `Setting`, and `setting.error("…")` or `table.error("…")` create an error that names
its place.
`shown_url` removes the password from a URL before it is logged or shown; `reason_in` and `was_refused` read the failure of
an HTTP server.
An exception in a hook becomes a `PluginFailed` that names the plugin and the hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuqueue.config.table import Setting, Table
from gpuqueue.contract import details
from gpuqueue.contract.device import Device
from gpuqueue.contract.executor import AsyncExecutor, AttemptContext, AttemptInterrupted, Executor
from gpuqueue.contract.hookspecs import (
    AttemptFailedDetails,
    ChoosePreemptionsDetails,
    CleanUpAttemptDetails,
    ConfigureDetails,
    JobDemandDetails,
    OrderCandidatesDetails,
    PlaceJobDetails,
    PrepareAttemptDetails,
    QueueHoldDetails,
    QueueLimitsDetails,
    RegisterCommandsDetails,
    RegisterDevicesDetails,
    RegisterExecutorsDetails,
    RetentionDetails,
    Service,
    WaitingJob,
    hookimpl,
)
from gpuqueue.domain.answers import CleanUp, Demand, Hold, Limits, Placement, Preemption, Wait
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.endpoints import shown_url
from gpuqueue.domain.errors import (
    AttemptTimedOut,
    BackendUnavailable,
    CallerFault,
    ConfigurationError,
    ExecutionError,
    OutOfMemory,
    PluginFailed,
    RunnerCrashed,
)
from gpuqueue.domain.job import Entry, Event, Job, Lease, LogLine, Record, State
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, QueueSettings, Rate
from gpuqueue.domain.verdicts import Discard, Retry, RetryRules, Snooze
from gpuqueue.domain.view import Backend, DeviceView, Pause, QueueView, Reservation, ServiceInfo, View, WorkerInfo
from gpuqueue.executors.replies import reason_in, was_refused

if TYPE_CHECKING:  # for type checkers, with the class of the queue object; at run time these are the plain classes
    from gpuqueue.client.queue import GPUQueue

    RegisterServicesDetails = details.RegisterServicesDetails[GPUQueue]
    ServiceContext = details.ServiceContext[GPUQueue]
else:
    RegisterServicesDetails = details.RegisterServicesDetails
    ServiceContext = details.ServiceContext

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
    "ChoosePreemptionsDetails",
    "CleanUp",
    "CleanUpAttemptDetails",
    "ConfigurationError",
    "ConfigureDetails",
    "Demand",
    "Device",
    "DeviceSettings",
    "DeviceView",
    "Discard",
    "Entry",
    "Event",
    "ExecutionError",
    "Executor",
    "Hold",
    "Job",
    "JobDemandDetails",
    "Lease",
    "Limits",
    "LogLine",
    "ModelSettings",
    "OrderCandidatesDetails",
    "OutOfMemory",
    "Pause",
    "PlaceJobDetails",
    "Placement",
    "PluginFailed",
    "Preemption",
    "PrepareAttemptDetails",
    "QueueHoldDetails",
    "QueueLimitsDetails",
    "QueueSettings",
    "QueueView",
    "Rate",
    "Reading",
    "Record",
    "RegisterCommandsDetails",
    "RegisterDevicesDetails",
    "RegisterExecutorsDetails",
    "RegisterServicesDetails",
    "Reservation",
    "Resident",
    "RetentionDetails",
    "Retry",
    "RetryRules",
    "RunnerCrashed",
    "Service",
    "ServiceContext",
    "ServiceInfo",
    "Setting",
    "Snooze",
    "State",
    "Table",
    "View",
    "Wait",
    "WaitingJob",
    "WorkerInfo",
    "hookimpl",
    "reason_in",
    "shown_url",
    "was_refused",
]
