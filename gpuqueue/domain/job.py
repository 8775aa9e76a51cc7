"""Defines a job and its parts: states, leases, status, output and events; independent of how a job is stored or run.

`gpuqueue.domain.transitions` lists the transitions between states; `gpuqueue/docs/states.md` draws them.
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
    """A job's place in its life cycle."""

    SCHEDULED = "scheduled"  # waiting for its time
    AVAILABLE = "available"  # may be claimed
    RUNNING = "running"  # a worker holds its lease
    RETRYABLE = "retryable"  # waiting for its next attempt
    COMPLETED = "completed"
    CANCELLED = "cancelled"  # a person stopped it
    DISCARDED = "discarded"  # failed for good, expired or refused


WAITING = (State.SCHEDULED, State.AVAILABLE, State.RETRYABLE)
FINISHED = (State.COMPLETED, State.CANCELLED, State.DISCARDED)


@dataclass(frozen=True, slots=True)
class Job:
    """One request, as stored at one moment."""

    id: int
    queue: str
    task: str
    state: State
    priority: int  # higher runs first
    attempt: int  # attempts started and not given back
    max_attempts: int
    lease: int  # increases by one at each claim and rescue
    crashes: int  # how often a process that ran only this job died
    enqueued_at: datetime
    scheduled_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    timeout_s: float | None
    worker_id: str | None
    model: str  # the model it needs; "" for none or not yet known
    demand_bytes: int  # device memory it needs; 0 for none or not yet known
    device: str | None  # the device on which it has reserved memory
    reserved_bytes: int
    waiting_for: str | None  # the unavailable backend that it was postponed for
    cancel_requested: bool
    arguments: Mapping[str, Any]
    tags: tuple[str, ...]
    error: JobErrorRecord | None
    progress: float | None = None  # 0 to 1, as reported by its running or latest attempt; None without a report
    progress_note: str = ""
    wanted_bytes: int | None = None  # device memory requested for it when it was enqueued
    wanted_device: str | None = None  # the device, or the device label, requested for it
    fallback: tuple[str, ...] = ()  # models to use, in this order, when its own is missing or fits no device
    preemptions: int = 0  # how often it was preempted for another queue's job
    output_tokens: int = 0  # of its running or latest attempt on a device, and of the output that this continued
    passed_at: datetime | None = None  # since when jobs behind it start before it, because their model is loaded
    arguments_error: str = ""  # why the arguments could not be decoded; then `arguments` is empty

    @property
    def expected_model(self) -> str:
        """The model it needs or, while that is not known, the one named in its arguments; "" for none."""
        named = self.arguments.get("model")
        return self.model or (named if isinstance(named, str) else "")


@dataclass(frozen=True, slots=True)
class JobErrorRecord:
    """Why a job's latest attempt failed, or why the job ended; texts of other code are made safe before (`safe_text`)."""

    code: str
    message: str
    traceback: str = ""


class LogLine(NamedTuple):
    """A line that a job logged; `lease` increases from attempt to attempt."""

    seq: int
    lease: int
    at: datetime
    message: str


class Extras(NamedTuple):
    """Options that few jobs use."""

    scheduled_at_us: int | None = None  # None: immediately
    timeout_s: float | None = None
    expires_at_us: int | None = None
    tags: tuple[str, ...] = ()
    wanted_bytes: int | None = None
    wanted_device: str | None = None
    fallback: tuple[str, ...] = ()


class NewJob(NamedTuple):
    """A job to store; `arguments` is JSON text, times are microseconds since 1970-01-01 UTC."""

    queue: str
    task: str
    arguments: str
    enqueued_at_us: int
    priority: int = 0
    max_attempts: int = 1
    extras: Extras | None = None


class Entry(NamedTuple):
    """A job's place in its queue."""

    id: int
    priority: int
    scheduled_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Record:
    """A job with the data outside its row: its result (JSON text, None without one) and its log lines."""

    job: Job
    result: str | None = None
    logs: tuple[LogLine, ...] = ()


class Lease(NamedTuple):
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
    arguments_error: str = ""  # why the arguments could not be decoded
    crashes: int | None = None  # of a suspect, which runs in a process of its own; None for any other job

    @property
    def is_suspect(self) -> bool:
        """Whether a worker, or a process of its own, died during its last attempt."""
        return self.crashes is not None


class PartialOutput(NamedTuple):
    """The output of an attempt that was interrupted; `lease` is the one under which that output started.

    `output_tokens` are all of its tokens, whichever attempts generated them. `model` is "" if it is not known.
    """

    lease: int
    text: str
    output_tokens: int
    model: str = ""


class Cancellation(NamedTuple):
    """The result of cancelling a queue's jobs: how many were cancelled while waiting, and how many were asked to stop."""

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
    """What a waiting caller needs to know: the job's state and, once finished, its result (JSON text) or error."""

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
    """A running job, without its arguments, which may be large."""

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


LOOKED_AT = 20_000  # jobs examined by one search


class Found(NamedTuple):
    """Jobs, newest first; `looked_to` is the last id that was examined, None when there are no more."""

    jobs: list[Job]
    looked_to: int | None


def lease_of(job: Job, placement: Placement | None = None, *, is_suspect: bool = False, now_us: int) -> Lease:
    """Return the lease of the attempt that starts when a job is claimed now."""
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
        arguments_error=job.arguments_error,
        crashes=job.crashes if is_suspect else None,
    )
