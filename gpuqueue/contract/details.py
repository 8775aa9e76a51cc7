"""Defines the argument of each hook: one frozen object, which may gain fields but never loses one; and the hook markers.

Calls no hook.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from gpuqueue.config.table import Table
from gpuqueue.domain.answers import Demand, Hold
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.frozen import freeze
from gpuqueue.domain.job import Job, Lease, State
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, QueueSettings
from gpuqueue.domain.verdicts import DEFAULT_RULES, RetryRules
from gpuqueue.domain.view import Reservation, View

if TYPE_CHECKING:
    import click

Client = TypeVar("Client")  # the queue object; `gpuqueue.plugins` has these classes with it
PROJECT = "gpuqueue"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class QueueHoldDetails:
    """A queue; `holds` has the answers for the queues that it yields to, which are always decided first."""

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
    """A job of a GPU queue that has no known demand yet."""

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
    """The first job of each (queue, demand class), for the GPU queues that are not held."""

    candidates: tuple[Job, ...]
    view: View


@dataclass(frozen=True, slots=True)
class WaitingJob:
    """A job that is waiting only for a device: its demand, and the devices on which it could run."""

    job: Job
    demand: Demand
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChoosePreemptionsDetails:
    """The jobs that are waiting only for a device, in their order; `view.devices` has the running attempts."""

    waiting: tuple[WaitingJob, ...]
    view: View


@dataclass(frozen=True, slots=True)
class AttemptFailedDetails:
    """A failed attempt; `error` is what the task or the executor raised, `rules` are the task's rules for failures.

    `backend` is the one it used, `backends` are all that its queue may use.
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
    """The configured retention of finished jobs: {state: seconds}; None keeps them forever."""

    configured: Mapping[State, float | None]
    now: datetime

    def __post_init__(self) -> None:
        freeze(self, "configured")


@dataclass(frozen=True, slots=True)
class PrepareAttemptDetails:
    """An attempt on a device, before it starts; `read_device()` reads the device now; `stopping()` becomes true on cancel.

    `isolated` is true if it runs in a separate process, which releases all its memory when it ends. `in_use` names the models
    that the device's other jobs have reserved; they must stay loaded. `next_models()` returns those that near jobs need, as for a
    clean-up. `memory_returns` is true while the memory of an unloaded model may not be back yet.
    """

    lease: Lease
    device: DeviceSettings
    models: Mapping[str, ModelSettings]
    backend: BackendSettings | None
    read_device: Callable[[], Reading]
    stopping: Callable[[], bool]
    isolated: bool = False
    in_use: frozenset[str] = frozenset()
    next_models: Callable[[], Sequence[str]] = tuple
    memory_returns: bool = False

    def __post_init__(self) -> None:
        freeze(self, "models")


@dataclass(frozen=True, slots=True)
class CleanUpAttemptDetails:
    """An attempt on a device, after it ended in any way.

    `next_models()` returns the model of the job that would run next, and those of the jobs after it that fit on the device
    together; `next_use_s()` in how many seconds a job is expected to need this one's model, None when that is not known.
    `orphaned` is true if the worker that ran it died, so its request may still be running on the backend. `shared_with` are the
    ids of the running jobs that use the same loaded model: it must stay. While there are none, no other job starts to use it.
    `unloaded(residents, bytes)` says that the model is no longer loaded, which ones are, and how much memory it had, 0 if that is
    not known: from then on a job may start for which there is room beside the memory that is not back yet, also one that loads
    the model again. `is_unloaded` is true if that was said before: only the memory is awaited.
    `others()` are the device's other reservations now.
    """

    lease: Lease
    device: DeviceSettings
    backend: BackendSettings | None
    read_device: Callable[[], Reading]
    stopping: Callable[[], bool]
    orphaned: bool = False
    isolated: bool = False  # as in PrepareAttemptDetails; False if orphaned, because its task may not be known here
    shared_with: tuple[int, ...] = ()
    is_unloaded: bool = False
    unloaded: Callable[[tuple[Resident, ...], int], None] = lambda residents, bytes: None
    others: Callable[[], Sequence[Reservation]] = tuple
    next_models: Callable[[], Sequence[str]] = tuple
    next_use_s: Callable[[], float | None] = lambda: None


@dataclass(frozen=True, slots=True)
class ConfigureDetails:
    """A plugin's own section of the configuration, `[name]` with the plugin's registered name; empty if not given.

    Its errors name the file, variable or argument, the key, and what is expected; call `table.expect([…])` first. The variable
    for `[thermal] limit` is GPUQUEUE_THERMAL_LIMIT; names that start like one of gpuqueue's own sections, such as GPUQUEUE_GPU_…,
    belong to gpuqueue.
    """

    name: str
    table: Table


@dataclass(frozen=True, slots=True)
class RegisterExecutorsDetails:
    """The settings of the starting worker: backends, models by name, and devices."""

    backends: tuple[BackendSettings, ...]
    models: Mapping[str, ModelSettings]
    devices: tuple[DeviceSettings, ...]

    def __post_init__(self) -> None:
        freeze(self, "models")


@dataclass(frozen=True, slots=True)
class RegisterDevicesDetails:
    """The settings of the starting worker: devices and backends."""

    devices: tuple[DeviceSettings, ...]
    backends: tuple[BackendSettings, ...]


@dataclass(frozen=True, slots=True)
class RegisterCommandsDetails:
    """The command line; the plugin adds commands to its group `cli`."""

    cli: click.Group


@dataclass(frozen=True, slots=True)
class RegisterServicesDetails(Generic[Client]):
    """The queue object of the starting worker."""

    gq: Client


@dataclass(frozen=True, slots=True)
class ServiceContext(Generic[Client]):
    """A service's argument. The service must return soon after `stopping` is set: the worker stops, or another took it over.

    `term` increases with each worker that takes the service over; use it to fence late writes elsewhere.
    `note({…})` publishes the service's status as JSON, for `GPUQueue.services()` in every process.
    """

    gq: Client
    stopping: threading.Event
    term: int
    note: Callable[[Mapping[str, Any]], None]


Service = Callable[[ServiceContext[Any]], None]
