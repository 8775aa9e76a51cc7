"""Owns how attempts end and what they say meanwhile, as a worker tells the store; and what a rescue found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from gpuqueue.domain.job import JobErrorRecord, Lease, State
from gpuqueue.domain.view import Reservation


class Completed(NamedTuple):
    """The attempt succeeded; `result` is JSON text."""

    lease: Lease
    result: str


class Ended(NamedTuple):
    """The job is over without a result: `state` is discarded or cancelled."""

    lease: Lease
    state: State
    error: JobErrorRecord


class Postponed(NamedTuple):
    """The job goes back: available at `at_us`.

    `outcome` is retried, which spends the attempt, snoozed, released or preempted; the last two keep the job's place in its
    queue.
    """

    lease: Lease
    outcome: Literal["retried", "snoozed", "released", "preempted"]
    at_us: int
    error: JobErrorRecord | None = None
    waiting_for: str | None = None


Outcome = Completed | Ended | Postponed


class Rescued(NamedTuple):
    """A job that a dead worker ran, as it is now; `lease` is its new lease number."""

    job_id: int
    lease: int
    queue: str
    task: str
    state: State
    crashes: int


class Rescue(NamedTuple):
    """What a dead worker left: the jobs that it ran, and the device reservations that the rescuer must clean up."""

    jobs: tuple[Rescued, ...]
    orphans: tuple[Reservation, ...]


class Report(NamedTuple):
    """What a running attempt says: output, log lines as (time in microseconds, message), and how far it is."""

    job_id: int
    lease: int
    text: str = ""
    lines: Sequence[tuple[int, str]] = ()
    progress: tuple[float, str] | None = None
    output_tokens: int | None = None
    output_lease: int | None = None  # under which the output began, where this attempt continues an earlier one's
