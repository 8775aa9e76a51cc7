"""Owns the snapshot that decisions are made from, and its parts; the same in a worker and in a web process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.frozen import freeze
from gpuqueue.domain.settings import DeviceSettings, ModelSettings, PlacementMode, QueueSettings


@dataclass(frozen=True, slots=True)
class Reservation:
    """Device memory kept for a job until its verified clean-up; `running` False means only clean-up is left."""

    job_id: int
    lease: int
    queue: str
    model: str
    device: str
    reserved_bytes: int
    running: bool
    worker_id: str | None
    task: str = ""
    started_at: datetime | None = None
    preemptible: bool = False  # its attempt can be asked to make room
    preempt_requested: bool = False
    preemptions: int = 0
    output_tokens: int = 0
    output_limit: int | None = None  # the most tokens that it may produce, where the job says so


@dataclass(frozen=True, slots=True)
class Backend:
    """Whether a backend (an Ollama) can be used, from its row."""

    name: str
    url: str
    available: bool
    failures: int  # outages since the last success
    since: datetime | None  # when it went away
    retry_at: datetime | None  # when it is asked next
    checked_at: datetime | None
    error: str
    models: Mapping[str, int] | None = None  # those on its disk, with their bytes there; None is not known
    device: str = ""  # as in its settings


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """Work that one worker of all does beside its jobs; `worker_id` None: nobody does it now.

    `term` grows with each worker that takes it over. `status` is what it last said of itself, at `noted_at`.
    """

    name: str
    worker_id: str | None
    term: int
    since: datetime | None
    expires_at: datetime | None
    status: Mapping[str, Any]
    noted_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process, from its row."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...] | None  # None serves all
    started_at: datetime
    expires_at: datetime
    digest: str
    alive: bool
    # What its own plugins hold, {queue: holds}: those that other processes may not have.
    holds: Mapping[str, tuple[Hold, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """A manual pause: who, why, and until when (None: until resumed)."""

    by: str
    reason: str
    at: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was learned from jobs, and how many observations it rests on."""

    value: float
    count: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue in the view; `waiting_count` counts available jobs that some device could take, at most 100.

    `noted_reasons` are the reasons for which the workers last saw the queue held: what a policy that is to end a hold later
    than it began it looks at, so that every process comes to the same answer.
    """

    settings: QueueSettings
    paused: Pause | None = None
    running_count: int = 0
    waiting_count: int = 0
    served: bool = True  # a live worker serves it
    noted_reasons: tuple[str, ...] = ()
    rate_level: float | None = None  # how many jobs its rate lets begin now; None without one
    rate_before: float | None = None  # the same at `rate_at`
    rate_at: datetime | None = None
    limited_by: str = ""  # why its concurrency or rate is tighter than configured


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device in the view."""

    settings: DeviceSettings
    reading: Reading | None = None
    residents: tuple[Resident, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    model: str = ""  # the last that was loaded, and when a job for it was claimed
    model_since: datetime | None = None

    @property
    def reserved_bytes(self) -> int:
        return sum(item.reserved_bytes for item in self.reservations)


@dataclass(frozen=True, slots=True)
class View:
    """One frozen snapshot of what decisions are made from; the same in a worker and in a web process."""

    now: datetime
    queues: Mapping[str, QueueView]
    devices: Mapping[str, DeviceView]
    backends: Mapping[str, Backend]
    models: Mapping[str, ModelSettings]
    workers: tuple[WorkerInfo, ...] = ()
    estimates: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)  # {(kind, key): …}, see gpuqueue.domain.estimates
    placement: PlacementMode = "pack"

    def __post_init__(self) -> None:
        freeze(self, "queues", "devices", "backends", "models", "estimates")


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker as stored; whether it lives is for the caller to find out."""

    info: WorkerInfo
    runtime_dir: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a device was last seen to be, and the last model that was loaded for a job."""

    reading: Reading | None = None
    residents: tuple[Resident, ...] = ()
    model: str = ""
    model_since: datetime | None = None
