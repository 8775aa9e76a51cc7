"""Defines the snapshot that decisions are made from, and its parts; the same in a worker and in a web process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.frozen import freeze
from gpuqueue.domain.room import room_bytes, taken_bytes
from gpuqueue.domain.settings import DeviceSettings, ModelSettings, PlacementMode, QueueSettings
from gpuqueue.domain.units import format_duration

THROWN_IN = timedelta(hours=1)  # how long it counts that work was thrown away
RESTARTED_IN = timedelta(minutes=5)  # how long it counts that work took time to start again


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
    preemptible: bool = False  # its attempt can be preempted
    preempt_requested: bool = False
    preemptions: int = 0
    output_tokens: int = 0
    output_limit: int | None = None  # the maximum number of output tokens, if the job sets one
    continues: bool = False  # a later attempt would continue its output
    first_output_at: datetime | None = None
    unloaded: bool = False  # its attempt has ended and its model was unloaded: only its memory is not back yet


@dataclass(frozen=True, slots=True)
class Backend:
    """The availability of a backend (an Ollama), from its row."""

    name: str
    url: str
    available: bool
    failures: int  # outages since the last success
    since: datetime | None  # the start of the outage
    retry_at: datetime | None  # the next check
    checked_at: datetime | None
    error: str
    models: Mapping[str, int] | None = None  # installed models and their size on disk; None if not known
    device: str = ""  # as in its settings, like `num_parallel`
    num_parallel: int = 1


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A singleton service, which one worker runs alongside its jobs; `worker_id` None: no worker runs it now.

    `term` increases with each worker that takes it over. `status` is what it last reported, at `noted_at`.
    """

    name: str
    worker_id: str | None
    term: int
    since: datetime | None
    expires_at: datetime | None
    status: Mapping[str, Any]
    noted_at: datetime | None


STUCK_S = 60.0  # no part of a worker that is well is busy with one thing for longer; a job's own thread is not such a part


class PartInfo(NamedTuple):
    """One part of a worker, as of its last heartbeat.

    `alive`: its threads run. `busy_s`: how long it has been at its present work, None while it waits for some. `last_at_us`: when
    it last finished something, in microseconds since 1970-01-01 UTC.
    """

    name: str
    alive: bool
    busy_s: float | None
    last_at_us: int

    @property
    def trouble(self) -> str:
        """Why the worker cannot do its work, "" if this part is well."""
        if not self.alive:
            return f"its {self.name} thread has ended"
        if self.busy_s is not None and self.busy_s > STUCK_S:
            return f"its {self.name} thread has been stuck for {format_duration(round(self.busy_s))}"
        return ""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process, from its row."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...] | None  # None for all
    started_at: datetime
    expires_at: datetime
    digest: str
    alive: bool
    # Holds by its own plugins, which other processes may not have: {queue: holds}.
    holds: Mapping[str, tuple[Hold, ...]] = field(default_factory=dict)
    parts: tuple[PartInfo, ...] = ()  # empty before the first heartbeat

    @property
    def troubles(self) -> list[str]:
        """Why it cannot do its work, although it is alive."""
        return [part.trouble for part in self.parts if part.trouble]


@dataclass(frozen=True, slots=True)
class Pause:
    """A manual pause: by whom, why, and until when (None: until resumed)."""

    by: str
    reason: str
    at: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value learned from jobs, the number of observations behind it, and when the last one was made."""

    value: float
    count: int
    at_us: int = 0


@dataclass(frozen=True, slots=True)
class QueueView:
    """One queue in the view; `waiting_count` counts available jobs that some device could take, at most 100, and no suspects.

    `noted_reasons` are the reasons for which the workers last saw the queue held. A policy that starts and ends a hold at
    different thresholds reads them, so that every process comes to the same answer.
    """

    settings: QueueSettings
    paused: Pause | None = None
    running_count: int = 0
    waiting_count: int = 0
    served: bool = True  # a live worker serves it
    noted_reasons: tuple[str, ...] = ()
    rate_level: float | None = None  # how many jobs its rate lets start now; None without one
    rate_before: float | None = None  # the same at `rate_at`
    rate_at: datetime | None = None
    limited_by: str = ""  # why its concurrency or rate is tighter than configured
    limits_failed: Hold | None = None  # of a plugin that failed to limit it


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device in the view."""

    settings: DeviceSettings
    reading: Reading | None = None
    residents: tuple[Resident, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    model: str = ""  # the last model that was loaded, and when a job for it was claimed
    model_since: datetime | None = None
    thrown: tuple[tuple[datetime, float], ...] = ()  # preempted work that starts again: (when, seconds), the oldest first
    restarted: tuple[tuple[datetime, float], ...] = ()  # what preempted work that goes on had taken to start, likewise

    def thrown_s(self, now: datetime) -> float:
        """Return how many seconds of work preemptions threw away in the last hour."""
        return sum(seconds for at, seconds in self.thrown if at > now - THROWN_IN)

    def restarted_s(self, now: datetime) -> float:
        """Return how long attempts that were preempted within RESTARTED_IN had taken to start."""
        return sum(seconds for at, seconds in self.restarted if at > now - RESTARTED_IN)

    @property
    def reserved_bytes(self) -> int:
        return taken_bytes(self.reservations)

    @property
    def room_bytes(self) -> int:
        return room_bytes(self.settings, self.reservations)


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
    """A worker as stored; the caller must find out whether it is alive."""

    info: WorkerInfo
    runtime_dir: str
    lease_s: float  # how long it may be silent


@dataclass(frozen=True, slots=True)
class Sighting:
    """The last known state of a device, and the last model that was loaded for a job."""

    reading: Reading | None = None
    residents: tuple[Resident, ...] = ()
    model: str = ""
    model_since: datetime | None = None
    thrown: tuple[tuple[datetime, float], ...] = ()
    restarted: tuple[tuple[datetime, float], ...] = ()
