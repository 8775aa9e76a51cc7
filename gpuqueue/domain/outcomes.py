"""Defines what a worker reports to the store about its attempts: outcomes, progress and output; and the result of a rescue."""

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
    """The job ended without a result: `state` is discarded or cancelled."""

    lease: Lease
    state: State
    error: JobErrorRecord


class Postponed(NamedTuple):
    """The job goes back to its queue, available at `at_us`.

    `outcome` is retried (which spends the attempt), snoozed, released or preempted; the last two keep the job's place in its
    queue.
    """

    lease: Lease
    outcome: Literal["retried", "snoozed", "released", "preempted"]
    at_us: int
    error: JobErrorRecord | None = None
    waiting_for: str | None = None


class Crashed(NamedTuple):
    """The process that ran only this job died: `state` is available, or discarded after `max_crashes` such deaths."""

    lease: Lease
    state: State
    error: JobErrorRecord


Outcome = Completed | Ended | Postponed | Crashed


def crash_of(crashes: int, message: str, *, max_crashes: int) -> tuple[State, JobErrorRecord]:
    """Return the state and the error of a job whose own process has died for the `crashes`-th time, as `message` says."""
    if crashes < max_crashes:
        return State.AVAILABLE, JobErrorRecord("crashed", message)
    times = "once" if crashes == 1 else f"{crashes} times"
    return State.DISCARDED, JobErrorRecord("crashed", f"the job's process died {times}; the last time: {message}")


class Rescued(NamedTuple):
    """A job of a dead worker, as it is after the rescue; `lease` is its new lease number."""

    job_id: int
    lease: int
    queue: str
    task: str
    state: State
    crashes: int


class Rescue(NamedTuple):
    """What a dead worker left behind: the jobs it ran, and the device reservations that the rescuer must clean up."""

    jobs: tuple[Rescued, ...]
    orphans: tuple[Reservation, ...]


class Report(NamedTuple):
    """A running attempt's report: output, log lines as (time in microseconds, message), and progress."""

    job_id: int
    lease: int
    text: str = ""
    lines: Sequence[tuple[int, str]] = ()
    progress: tuple[float, str] | None = None
    output_tokens: int | None = None
    first_output_us: int | None = None  # when the first of `output_tokens` came, in microseconds since 1970-01-01 UTC
    output_lease: int | None = None  # under which the output started, if this attempt continues an earlier one's
