"""Owns the nouns: frozen jobs, leases, holds, demands, devices; knows nothing of how they are stored or run.

    scheduled ──due──▶ available ──claim──▶ running ──▶ completed
                        ▲   │                 │ ├─────▶ discarded   attempts spent, final failure, expired, refused
                        │   └──cancel         │ └─────▶ cancelled
                        └──────due── retryable ◀┘ failed with attempts left, or snoozed

Here a *model* is a neural network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from gpuqueue.domain.moments import clock, until
from gpuqueue.domain.units import format_duration


class State(StrEnum):
    """Where a job is in its life."""

    SCHEDULED = "scheduled"  # waits for its time
    AVAILABLE = "available"  # may be claimed
    RUNNING = "running"  # a worker holds its lease
    RETRYABLE = "retryable"  # waits for its next attempt
    COMPLETED = "completed"
    CANCELLED = "cancelled"  # a person stopped it
    DISCARDED = "discarded"  # failed for good, expired or refused


WAITING = (State.SCHEDULED, State.AVAILABLE, State.RETRYABLE)
FINISHED = (State.COMPLETED, State.CANCELLED, State.DISCARDED)

WhenUnavailable = Literal["reject", "retry", "wait"]
Overrun = Literal["finish", "preempt", "dont_start"]  # what becomes of a job that runs into a pause window
YieldMode = Literal["preempt", "drain"]  # whether running jobs make room for those that their queue yields to
OnSpill = Literal["accept", "wait", "fail"]  # what becomes of a job whose model did not wholly fit the device
PlacementMode = Literal["pack", "spread"]  # which of several devices gets a job: the fullest that has room, or the emptiest
LogFormat = Literal["text", "json"]  # how a worker's log is written
Resume = Literal["restart", "continue"]  # what becomes of the output of an attempt that made room


@dataclass(frozen=True, slots=True)
class Job:
    """One request, as its row says at one moment."""

    id: int
    queue: str
    task: str
    state: State
    priority: int  # higher runs first
    attempt: int  # attempts begun and not given back
    max_attempts: int
    lease: int  # grows by one at each claim and rescue
    crashes: int  # workers that died while running it
    enqueued_at: datetime
    scheduled_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    timeout_s: float | None
    worker_id: str | None
    model: str  # the model it needs; "" for none or not yet known
    demand_bytes: int  # device memory it needs; 0 for none or not yet known
    device: str | None  # the device whose memory it has reserved
    reserved_bytes: int
    waiting_for: str | None  # the backend whose absence postponed it
    cancel_requested: bool
    arguments: Mapping[str, Any]
    tags: tuple[str, ...]
    error: JobErrorRecord | None
    progress: float | None = None  # 0 to 1, as its running or latest attempt said; None when it said nothing
    progress_note: str = ""
    wanted_bytes: int | None = None  # device memory that it asked for itself
    wanted_device: str | None = None  # the device, or the label of devices, that it asked for
    fallback: tuple[str, ...] = ()  # models to take, in this order, when its own is missing or fits no device
    preemptions: int = 0  # how often it made room for another queue's job
    output_tokens: int = 0  # of its running or latest attempt on a device

    @property
    def expected_model(self) -> str:
        """The model it needs, or, while that is not known, the one that its arguments name; "" for none."""
        named = self.arguments.get("model")
        return self.model or (named if isinstance(named, str) else "")


@dataclass(frozen=True, slots=True)
class JobErrorRecord:
    """Why a job's latest attempt failed, or why the job ended."""

    code: str
    message: str
    traceback: str = ""


class LogLine(NamedTuple):
    """A line that a job logged; `lease` grows from attempt to attempt."""

    seq: int
    lease: int
    at: datetime
    message: str


class Entry(NamedTuple):
    """Where a job stands in its queue."""

    id: int
    priority: int
    scheduled_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Record:
    """A job with what a row of it does not hold: its result (JSON text, None without one) and its log lines."""

    job: Job
    result: str | None = None
    logs: tuple[LogLine, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one attempt; `lease` fences every later write for it."""

    job_id: int
    lease: int
    queue: str
    task: str
    attempt: int
    max_attempts: int
    arguments: Mapping[str, Any]
    timeout_s: float | None
    started_at: datetime
    model: str = ""
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job needs of a device; `vram_bytes` 0 means no memory, `model` "" no model."""

    vram_bytes: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """The device a job gets and the bytes it reserves there."""

    device: str
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job gets no device now."""

    reason: str
    detail: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a queue may not start jobs now; `refuse` ends its waiting jobs instead of keeping them."""

    reason: str
    detail: str
    until: datetime | None = None
    refuse: bool = False
    plugin: str = field(default="", compare=False)  # which said so; filled in by whoever asked it


class PartialOutput(NamedTuple):
    """What an attempt that made room had written; `lease` is the one under which that output began."""

    lease: int
    text: str
    output_tokens: int


class Preemption(NamedTuple):
    """An attempt that is to stop, at once or not before a moment; `for_job` is the job that it makes room for, if any."""

    job_id: int
    lease: int
    for_job: int | None = None
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` jobs begin in any `per_s` seconds that follow a rest; "10/m" as people write it."""

    count: int
    per_s: float


@dataclass(frozen=True, slots=True)
class WindowRule:
    """What holds for a queue while a window is open; None leaves what is configured."""

    at: str
    concurrency: int | None = None
    rate: Rate | None = None


class Limits(NamedTuple):
    """Tighter limits for a queue now, and why; None leaves what is configured."""

    concurrency: int | None = None
    rate: Rate | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How one queue behaves; the worker writes it into the queue's row."""

    name: str
    gpu: bool = False
    concurrency: int | None = None  # running jobs at once, over all workers; None is no limit
    rate: Rate | None = None  # how many jobs may begin in a time
    pause: tuple[str, ...] = ()  # windows: "09:00-18:00", "mon-fri 09:00-18:00"
    windows: tuple[WindowRule, ...] = ()
    overrun: Overrun = "finish"
    timezone: str = "UTC"
    yields_to: tuple[str, ...] = ()
    when_unavailable: WhenUnavailable = "wait"
    retry_every_s: float = 300.0
    yield_mode: YieldMode = "preempt"
    min_run_s: float = 2.0  # an attempt is not asked to make room before it has run so long
    nearly_done_s: float = 3.0  # nor when it is expected to end within this time
    max_preemptions: int = 5  # nor when its job has made room so often
    max_attempts: int | None = None
    timeout_s: float | None = None
    priority: int | None = None
    backend: str = ""  # the backend its jobs need; "" is none
    fallback: tuple[str, ...] = ()  # models for jobs whose own is missing or fits no device, unless a job names others


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a model needs; `options` size its memory and are pinned for every job."""

    name: str
    vram_bytes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    resume: Resume = "restart"
    on_spill: OnSpill = "accept"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What gpuqueue may use of one device."""

    name: str  # "gpu0", or the card's UUID
    budget_bytes: int
    margin_bytes: int = 0
    max_models: int = 1
    slots: int = 1  # GPU jobs at once
    keep_warm_s: float = 0.0
    index: int = 0
    min_free_bytes: int = 256 * 2**20  # of the card's memory, left free when a job starts
    affinity_s: float = 120.0  # how long a job for another model may wait for those that need the loaded one
    labels: tuple[str, ...] = ()  # what a job may ask for instead of the device's name


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds memory on a device; None is unknown, as under some drivers and in containers."""

    pid: int
    used_bytes: int | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a device said of itself; None is unknown (no driver here, or the value is not supported)."""

    at: datetime
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[DeviceProcess, ...] | None = None
    lost: str | None = None  # why it cannot be read

    def age_s(self, now: datetime) -> float:
        """Say how old it is."""
        return max(0.0, (now - self.at).total_seconds())


@dataclass(frozen=True, slots=True)
class Resident:
    """A model loaded on a device, as its backend reports it; size above vram means layers on the CPU."""

    model: str
    size_bytes: int
    vram_bytes: int


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
class BackendSettings:
    """One Ollama and how patient to be with it; durations in seconds."""

    name: str = "ollama"
    url: str = "http://127.0.0.1:11434"
    connect_s: float = 1.0
    first_token_s: float = 300.0  # a cold load happens before the first token
    gap_s: float = 60.0  # between two tokens
    total_s: float = 1800.0
    settle_s: float = 2.0  # after an unload where no driver can confirm that the memory is back
    release_s: float = 15.0  # how long an unload's memory may take to come back before it is reported
    probe_every_s: float = 5.0
    device: str = ""  # the device that it computes on; "" where it is not tied to one


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


class Cancellation(NamedTuple):
    """What became of a queue's jobs when all were cancelled: those that waited, and those that ran."""

    cancelled_count: int
    asked_to_stop_count: int


class CleanUp(NamedTuple):
    """What a clean-up found; `verified` False means that the memory may still be taken (`detail` says why)."""

    verified: bool
    detail: str
    waited_s: float = 0.0
    residents: tuple[Resident, ...] = ()
    observed_bytes: int | None = None  # what the attempt was seen to take of the device's memory


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the append-only record; `data` depends on `name`."""

    id: int
    at: datetime
    name: str
    job_id: int | None
    queue: str | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """Waiting jobs that are alike, and how many they are."""

    queue: str
    task: str
    model: str
    count: int


class RunningJob(NamedTuple):
    """A job that runs, as seen from one that waits."""

    id: int
    task: str
    started_at: datetime | None


class Surroundings(NamedTuple):
    """What stands beside a waiting job: the available jobs that come before it, and some running ones of its queue."""

    ahead: tuple[Work, ...] = ()
    running: tuple[RunningJob, ...] = ()

    def ahead_count(self, queue: str) -> int:
        return sum(work.count for work in self.ahead if work.queue == queue)


def _whole(length: timedelta) -> float:
    # An estimate has no tenths of a second.
    return float(max(1, round(length.total_seconds())))


class Expectation(NamedTuple):
    """What to expect of a job, from what jobs like it took before; None is not known, or nothing was learned yet.

    `position` is its place among the available jobs of its queue, from 1.
    """

    position: int | None
    start_at: datetime | None
    finish_at: datetime | None

    def worded(self, *, now: datetime) -> str:
        """Word it for people: `expected: number 3 of its queue, starts at 14:02 (2m from now)`, "" when nothing is known."""
        parts = [] if self.position in (None, 1) else [f"number {self.position} of its queue"]
        for verb, moment in (("starts", self.start_at), ("finishes", self.finish_at)):
            if moment is not None and moment > now:
                parts.append(f"{verb} at {clock(moment, now=now)} ({format_duration(_whole(moment - now))} from now)")
        return f"expected: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is; `str()` is the text for people."""

    job_id: int
    state: State
    summary: str
    reasons: tuple[Hold, ...]
    at: datetime
    advice: str = ""
    expected: Expectation | None = None  # None of a job that has ended

    def lines(self) -> list[str]:
        """Word it, with times in this machine's zone; the advice, which may be a command to copy, has a line of its own."""
        lines = [f"job {self.job_id}: {self.summary}"]
        lines += [f"  - {hold.reason}: {hold.detail}{until(hold.until, now=self.at)}" for hold in self.reasons]
        if self.expected is not None and (expected := self.expected.worded(now=self.at)):
            lines.append(f"  {expected}")
        if self.advice:
            lines.append(f"  → {self.advice}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
