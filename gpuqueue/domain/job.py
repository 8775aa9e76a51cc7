"""Owns a job and what belongs to it: its states, leases, status, output and events; knows nothing of how it is stored or run.

`gpuqueue.domain.transitions` says which state leads to which, and `gpuqueue/docs/states.md` draws it.
Here a *model* is a neural network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from gpuqueue.domain.answers import Placement
from gpuqueue.domain.units import from_us


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


class Extras(NamedTuple):
    """What few jobs ask for."""

    scheduled_at_us: int | None = None  # at once without one
    timeout_s: float | None = None
    expires_at_us: int | None = None
    tags: tuple[str, ...] = ()
    wanted_bytes: int | None = None
    wanted_device: str | None = None
    fallback: tuple[str, ...] = ()


class NewJob(NamedTuple):
    """A job that is to be stored; `arguments` is JSON text, times are microseconds since 1970-01-01 UTC."""

    queue: str
    task: str
    arguments: str
    enqueued_at_us: int
    priority: int = 0
    max_attempts: int = 1
    extras: Extras | None = None


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


class PartialOutput(NamedTuple):
    """What an attempt that made room had written; `lease` is the one under which that output began."""

    lease: int
    text: str
    output_tokens: int


class Cancellation(NamedTuple):
    """What became of a queue's jobs when all were cancelled: those that waited, and those that ran."""

    cancelled_count: int
    asked_to_stop_count: int


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
class JobStatus:
    """What a waiting caller needs of a job: its state and, once finished, its result (JSON text) or error."""

    state: State
    result: str | None
    error: Any
    expires_at_us: int | None
    queue: str
    lease: int

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED


@dataclass(frozen=True, slots=True)
class RunningAttempt:
    """A job that runs, without its arguments, which may be large."""

    id: int
    queue: str
    task: str
    model: str
    lease: int
    attempt: int
    max_attempts: int
    started_at: datetime | None
    worker_id: str | None
    device: str | None
    progress: float | None
    progress_note: str
    output_tokens: int
    cancel_requested: bool
    preempt_requested: bool


LOOKED_AT = 20_000  # jobs in one search


class Found(NamedTuple):
    """Jobs, the newest first; `looked_to` is the last id that was looked at, None when there are no more."""

    jobs: list[Job]
    looked_to: int | None


def lease_of(job: Job, placement: Placement | None = None, *, now_us: int) -> Lease:
    """Return the lease of the attempt that begins when a job is claimed now."""
    return Lease(
        job_id=job.id,
        lease=job.lease + 1,
        queue=job.queue,
        task=job.task,
        attempt=job.attempt + 1,
        max_attempts=job.max_attempts,
        arguments=job.arguments,
        timeout_s=job.timeout_s,
        started_at=from_us(now_us),
        model=job.model,
        placement=placement,
    )
