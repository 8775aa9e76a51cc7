"""Explains a job's state in words for people, and its expected times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.job import State
from gpuqueue.domain.moments import clock, until
from gpuqueue.domain.units import format_duration

WHOLE = timedelta(seconds=1)  # an expected time says no more
FAR = 10_000  # jobs ahead of one are counted up to here


@dataclass(frozen=True, slots=True)
class Work:
    """A group of similar waiting jobs, and their number.

    `behind` counts the jobs with the same model that came later, `begun` those of the group that were stopped in their output.
    """

    queue: str
    task: str
    model: str
    count: int
    behind: int = 0
    begun: int = 0


class RunningJob(NamedTuple):
    """A running job, as an explanation of a waiting one shows it."""

    id: int
    task: str
    started_at: datetime | None
    queue: str = ""


class JobThread(NamedTuple):
    """What one thread of a worker does: the job that it runs, and the one that its task waits for; 0 for none."""

    job_id: int
    waits_for: int = 0


class JobThreads(NamedTuple):
    """The threads of one worker: `pool` for jobs without a device, `devices` for the others."""

    pool: tuple[JobThread, ...]
    devices: tuple[JobThread, ...] = ()


class QueueContext(NamedTuple):
    """What is around a waiting job: the available jobs ahead of it, and some running jobs of its queue.

    `busy` are the jobs in the threads that may run it, if none is free; () also if that is not known.
    """

    ahead: tuple[Work, ...] = ()
    running: tuple[RunningJob, ...] = ()
    busy: tuple[RunningJob, ...] = ()

    def ahead_count(self, queue: str) -> int:
        return sum(work.count for work in self.ahead if work.queue == queue)


def _whole(length: timedelta) -> float:
    # An estimate has no tenths of a second.
    return float(max(1, round(length.total_seconds())))


def _within(middle: datetime | None, earliest: datetime | None, latest: datetime | None, *, now: datetime) -> str:
    if middle is None or middle <= now:
        return ""
    if earliest is None or latest is None or latest - earliest <= WHOLE:
        return f"at {clock(middle, now=now)} ({format_duration(_whole(middle - now))} from now)"
    last_s = _whole(latest - now)
    last = clock(now + timedelta(seconds=last_s), now=now)
    if earliest <= now:
        return f"by {last} (within {format_duration(last_s)})"
    first_s = _whole(earliest - now)
    first = clock(now + timedelta(seconds=first_s), now=now)
    return f"between {first} and {last} ({format_duration(first_s)} to {format_duration(last_s)} from now)"


class Expectation(NamedTuple):
    """A job's expected times, from how long jobs like it took before; None is unknown.

    `position` is its place among the available jobs of its queue, from 1. Eight of ten jobs start and finish between
    `earliest` and `latest`.
    """

    position: int | None
    start_at: datetime | None
    finish_at: datetime | None
    start_earliest: datetime | None = None
    start_latest: datetime | None = None
    finish_earliest: datetime | None = None
    finish_latest: datetime | None = None

    def worded(self, *, now: datetime) -> str:
        """Word it for people: `expected: number 3 in its queue, starts at 14:02 (2m from now)`, "" when nothing is known."""
        parts = [] if self.position in (None, 1) else [f"number {self.position} in its queue"]
        start = _within(self.start_at, self.start_earliest, self.start_latest, now=now)
        parts += [f"starts {start}"] if start else []
        end = self.worded_end(now=now)
        parts += [f"finishes {end}"] if end else []
        return f"expected: {', '.join(parts)}" if parts else ""

    def worded_end(self, *, now: datetime) -> str:
        """Word when it finishes: `between 14:02 and 14:05 (2m to 5m from now)`, "" when that is not known or over."""
        return _within(self.finish_at, self.finish_earliest, self.finish_latest, now=now)


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is in its state; `str()` is the text for people."""

    job_id: int
    state: State
    summary: str
    reasons: tuple[Hold, ...]
    at: datetime
    advice: str = ""
    expected: Expectation | None = None  # None when the job has ended

    def lines(self) -> list[str]:
        """Return it as lines, with times in this machine's zone; the advice, maybe a command to copy, has its own line."""
        lines = [f"job {self.job_id}: {self.summary}"]
        lines += [f"  - {hold.reason}: {hold.detail}{until(hold.until, now=self.at)}" for hold in self.reasons]
        if self.expected is not None and (expected := self.expected.worded(now=self.at)):
            lines.append(f"  {expected}")
        advice = dict.fromkeys([self.advice, *(hold.advice for hold in self.reasons)])
        lines += [f"  → {text}" for text in advice if text]
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
