"""Owns the hooks: what plugins may answer, and the frozen details each hook gets; calls none of them.

Every hook takes one argument, `details`, which may grow new fields but never loses one. Hooks never run inside a
write transaction. Where one answer is wanted (`firstresult`), the plugin registered last is asked first, so a third
party's answer comes before the defaults'; answer None to pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pluggy

from gpuqueue.config_table import Table
from gpuqueue.domain import (
    BackendSettings,
    CleanUp,
    Demand,
    DeviceSettings,
    Event,
    Hold,
    Job,
    Lease,
    Limits,
    ModelSettings,
    Placement,
    Preemption,
    QueueSettings,
    Reading,
    State,
    View,
    Wait,
)
from gpuqueue.verdicts import DEFAULT_RULES, Discard, Retry, RetryRules, Snooze

if TYPE_CHECKING:
    import click

    from gpuqueue.devices import Device
    from gpuqueue.executors import Executor
    from gpuqueue.queue import GPUQueue

PROJECT = "gpuqueue"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True)
class QueueHoldDetails:
    """`holds` has the answers for the queues that this one yields to: they are always decided first."""

    queue: QueueSettings
    view: View
    holds: Mapping[str, tuple[Hold, ...]]


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
    backends: Sequence[BackendSettings] = ()


@dataclass(frozen=True, slots=True)
class RetentionDetails:
    """How long finished jobs are kept, as configured: {state: seconds}; None keeps them for ever."""

    configured: Mapping[State, float | None]
    now: datetime


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
class RegisterServicesDetails:
    """The queue object of the worker that starts."""

    gq: GPUQueue


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """What a service works with. It returns soon after `stopping` is set: the worker stops, or another one took it over.

    `term` is a number that grows with each worker that takes the service over, to fence what a late one writes elsewhere.
    `note({…})` publishes JSON that says how it is, for `GPUQueue.services()` in every process.
    """

    gq: GPUQueue
    stopping: threading.Event
    term: int
    note: Callable[[Mapping[str, Any]], None]


Service = Callable[[ServiceContext], None]


class Decisions:
    """Answered from the view, without side effects; one that raises holds its queue with that as the reason."""

    @hookspec
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        """Say why the queue may not start jobs now; every answer counts, all must be None to run."""

    @hookspec
    def queue_limits(self, details: QueueLimitsDetails) -> Limits | None:
        """Say how the queue's concurrency or rate is tighter than configured now; of several answers the tightest counts."""

    @hookspec(firstresult=True)
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        """Say what the job needs of a device."""

    @hookspec(firstresult=True)
    def place_job(self, details: PlaceJobDetails) -> Placement | Wait | None:
        """Choose the job's device, or say why it must wait."""

    @hookspec(firstresult=True)
    def order_candidates(self, details: OrderCandidatesDetails) -> Sequence[Job] | None:
        """Put the candidates for a device into the order in which they are tried."""

    @hookspec
    def choose_preemptions(self, details: ChoosePreemptionsDetails) -> Sequence[Preemption] | None:
        """Choose running attempts on devices that are to stop: for jobs that wait, or because their time is over; all answers
        count."""

    @hookspec(firstresult=True)
    def attempt_failed(self, details: AttemptFailedDetails) -> Retry | Snooze | Discard | None:
        """Say what becomes of a job whose attempt failed."""

    @hookspec(firstresult=True)
    def retention(self, details: RetentionDetails) -> Mapping[State, float | None] | None:
        """Say for how many seconds finished jobs of each state are kept."""


class Actions:
    """Called around each attempt on a device, in the thread that runs it."""

    @hookspec
    def prepare_attempt(self, details: PrepareAttemptDetails) -> None:
        """Make room on the device; raise an ExecutionError when that is not possible."""

    @hookspec
    def clean_up_attempt(self, details: CleanUpAttemptDetails) -> CleanUp | None:
        """Give the device's memory back and verify it; always called, also after failure and cancel."""


class Events:
    """Told after the fact, by a worker, from the events table; an exception is logged and hurts nobody.

    Each event is delivered once, to one worker, in order; what that worker had not finished when it died is not repeated.
    """

    @hookspec
    def job_enqueued(self, details: Event) -> None:
        """A job was stored."""

    @hookspec
    def attempt_started(self, details: Event) -> None:
        """A worker claimed a job; `data` has attempt, worker, device, and waited_s since it could first have begun."""

    @hookspec
    def job_progressed(self, details: Event) -> None:
        """A running job said how far it is; `data` has progress (0 to 1), note, attempt and lease."""

    @hookspec
    def attempt_finished(self, details: Event) -> None:
        """An attempt ended without finishing its job; `data` has the state it went to, ran_s, and whether it was preempted."""

    @hookspec
    def job_finished(self, details: Event) -> None:
        """A job completed, was cancelled or was discarded; `data` has the state, and ran_s (None when it did not run)."""

    @hookspec
    def lease_rescued(self, details: Event) -> None:
        """A dead worker's job was taken back; `data` has worker, proof and crashes."""

    @hookspec
    def queue_held(self, details: Event) -> None:
        """A queue began to be held; `data` has the reasons."""

    @hookspec
    def queue_released(self, details: Event) -> None:
        """A queue may start jobs again."""

    @hookspec
    def backend_lost(self, details: Event) -> None:
        """A backend went away; `data` has backend and error."""

    @hookspec
    def backend_recovered(self, details: Event) -> None:
        """A backend came back; `data` has backend."""

    @hookspec
    def device_lost(self, details: Event) -> None:
        """A device can no longer be read; `data` has device and error."""

    @hookspec
    def device_recovered(self, details: Event) -> None:
        """A lost device can be read again; `data` has device."""

    @hookspec
    def worker_started(self, details: Event) -> None:
        """A worker began; `data` has worker, host and pid."""

    @hookspec
    def worker_stopped(self, details: Event) -> None:
        """A worker ended in good order; `data` has worker."""


class Registrations:
    """Asked once, when a queue object or a worker starts."""

    @hookspec
    def configure(self, details: ConfigureDetails) -> None:
        """Read the plugin's own section of the configuration, when the queue object is made and before any other hook."""

    @hookspec
    def register_executors(self, details: Mapping[str, Any]) -> Mapping[str, Executor] | None:
        """Add executor verbs: {task name: executor}; `details` has "backends", "models" and "devices"."""

    @hookspec
    def register_devices(self, details: Mapping[str, Any]) -> Mapping[str, Device] | None:
        """Add kinds of devices: {device name: device}; `details` has "devices" and "backends", as configured."""

    @hookspec
    def register_services(self, details: RegisterServicesDetails) -> Mapping[str, Service] | None:
        """Add what one worker of all does beside its jobs, in a thread of its own: {name: function}.

        A service that raises is started again after some seconds; another worker takes it over when its own stops or dies.
        """

    @hookspec
    def register_commands(self, details: click.Group) -> None:
        """Add commands to the command line's group.

        With `@click.pass_obj` a command gets the session, whose `existing_queue()` is the queue object, and `queue.plugin(name)`
        the plugin with what it read of its section.
        """


SPECIFICATIONS = (Decisions, Actions, Events, Registrations)
HOOK_NAMES = tuple(name for group in SPECIFICATIONS for name in vars(group) if not name.startswith("_"))
EVENT_NAMES = tuple(name for name in vars(Events) if not name.startswith("_"))
