"""Owns what each hook gets: one frozen object, which may grow new fields but never loses one; and the marks of hooks.

Calls no hook.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from gpuqueue.config.table import Table
from gpuqueue.domain.answers import Demand, Hold
from gpuqueue.domain.device import Reading
from gpuqueue.domain.frozen import freeze
from gpuqueue.domain.job import Job, Lease, State
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, QueueSettings
from gpuqueue.domain.verdicts import DEFAULT_RULES, RetryRules
from gpuqueue.domain.view import View

if TYPE_CHECKING:
    import click

Client = TypeVar("Client")  # the queue object; `gpuqueue.plugins` has these classes with it
PROJECT = "gpuqueue"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class QueueHoldDetails:
    """`holds` has the answers for the queues that this one yields to: they are always decided first."""

    queue: QueueSettings
    view: View
    holds: Mapping[str, tuple[Hold, ...]]

    def __post_init__(self) -> None:
        freeze(self, "holds")


@dataclass(frozen=True, slots=True)
class QueueLimitsDetails:
    """A queue with its configured limits."""

    queue: QueueSettings
    now: datetime


@dataclass(frozen=True, slots=True)
class JobDemandDetails:
    """A job of a GPU queue whose demand is not known yet."""

    job: Job
    queue: QueueSettings
    view: View


@dataclass(frozen=True, slots=True)
class PlaceJobDetails:
    """The first job of its demand class that could start now."""

    job: Job
    demand: Demand
    queue: QueueSettings
    view: View


@dataclass(frozen=True, slots=True)
class OrderCandidatesDetails:
    """The first job of each (queue, demand class) of the GPU queues that are not held."""

    candidates: tuple[Job, ...]
    view: View


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that could start but for the device: what it needs, and the devices on which it could run."""

    job: Job
    demand: Demand
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChoosePreemptionsDetails:
    """The jobs that only wait for a device, those first that come first; `view.devices` has the attempts that run there."""

    waiting: tuple[WaitingJob, ...]
    view: View


@dataclass(frozen=True, slots=True)
class AttemptFailedDetails:
    """A failed attempt; `error` is what the task or the executor raised, `rules` what the task says of its failures.

    `backend` is the one that it used, `backends` are all that its queue may use.
    """

    lease: Lease
    queue: QueueSettings
    error: BaseException
    now: datetime
    backend: BackendSettings | None
    rules: RetryRules = DEFAULT_RULES
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    backends: tuple[BackendSettings, ...] = ()

    def __post_init__(self) -> None:
        freeze(self, "models")


@dataclass(frozen=True, slots=True)
class RetentionDetails:
    """How long finished jobs are kept, as configured: {state: seconds}; None keeps them for ever."""

    configured: Mapping[State, float | None]
    now: datetime

    def __post_init__(self) -> None:
        freeze(self, "configured")


@dataclass(frozen=True, slots=True)
class PrepareAttemptDetails:
    """An attempt on a device, before it starts; `read_device()` asks the device now; `stopping()` turns true on cancel.

    `isolated` is true when it runs in a process of its own, whose end gives back all memory that it took.
    """

    lease: Lease
    device: DeviceSettings
    models: Mapping[str, ModelSettings]
    backend: BackendSettings | None
    read_device: Callable[[], Reading]
    stopping: Callable[[], bool]
    isolated: bool = False

    def __post_init__(self) -> None:
        freeze(self, "models")


@dataclass(frozen=True, slots=True)
class CleanUpAttemptDetails:
    """An attempt on a device, after it ended in whatever way; `next_model()` names the model that would run next, or None.

    `orphaned` is true when the worker that ran it died, so that its request may still be running on the backend.
    """

    lease: Lease
    device: DeviceSettings
    backend: BackendSettings | None
    read_device: Callable[[], Reading]
    next_model: Callable[[], str | None]
    stopping: Callable[[], bool]
    orphaned: bool = False
    isolated: bool = False  # as in PrepareAttemptDetails; False of an orphaned one, whose task may not be known here


@dataclass(frozen=True, slots=True)
class ConfigureDetails:
    """A plugin's own section of the configuration, `[name]` with the name it is registered under; empty where nobody gave one.

    Its errors name the file, variable or argument, the key, and what is right; begin with `table.expect([…])`. The variable of
    `[thermal] limit` is GPUQUEUE_THERMAL_LIMIT; one that begins like a section of gpuqueue's own, GPUQUEUE_GPU_…, is its own.
    """

    name: str
    table: Table


@dataclass(frozen=True, slots=True)
class RegisterExecutorsDetails:
    """The settings that the worker starts with: its backends, its models by name, and its devices."""

    backends: tuple[BackendSettings, ...]
    models: Mapping[str, ModelSettings]
    devices: tuple[DeviceSettings, ...]

    def __post_init__(self) -> None:
        freeze(self, "models")


@dataclass(frozen=True, slots=True)
class RegisterDevicesDetails:
    """The settings that the worker starts with: its devices and its backends."""

    devices: tuple[DeviceSettings, ...]
    backends: tuple[BackendSettings, ...]


@dataclass(frozen=True, slots=True)
class RegisterCommandsDetails:
    """The command line: `cli` is its group, to which the plugin adds commands."""

    cli: click.Group


@dataclass(frozen=True, slots=True)
class RegisterServicesDetails(Generic[Client]):
    """The queue object of the worker that starts."""

    gq: Client


@dataclass(frozen=True, slots=True)
class ServiceContext(Generic[Client]):
    """What a service works with. It returns soon after `stopping` is set: the worker stops, or another one took it over.

    `term` is a number that grows with each worker that takes the service over, to fence what a late one writes elsewhere.
    `note({…})` publishes JSON that says how it is, for `GPUQueue.services()` in every process.
    """

    gq: Client
    stopping: threading.Event
    term: int
    note: Callable[[Mapping[str, Any]], None]


Service = Callable[[ServiceContext[Any]], None]
