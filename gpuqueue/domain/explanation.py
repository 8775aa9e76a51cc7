"""Owns why a job is where it is, in words for people, and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.job import State
from gpuqueue.domain.moments import clock, until
from gpuqueue.domain.units import format_duration

FAR = 10_000  # the jobs before one are counted up to here


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


class QueueContext(NamedTuple):
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
