"""Says what must hold of the hours that were played, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gpuqueue.testing.virtual import VirtualModel
from gpuqueue.testing.virtual.ollama import PAGE_CACHE_BYTES_PER_S, RELEASE_S, START_S
from tests.benchmarks.scheduling.expected import Answers, score
from tests.benchmarks.scheduling.hours import GEMMA, QWEN
from tests.benchmarks.scheduling.percentiles import percentile
from tests.benchmarks.scheduling.play import DRAIN, FCFS, RESTART, SCHEMES, SHIPPED, Played

Row = Sequence[Played]  # one for each seed
Rows = Mapping[tuple[str, str, bool], Row]  # {(hour, scheme, prompt cache): row}


class Check(NamedTuple):
    """One thing that must hold: the value found, and what it may be."""

    what: str
    found: float
    sign: str
    bound: float

    @property
    def holds(self) -> bool:
        return self.found <= self.bound + 1e-9 if self.sign == "≤" else self.found >= self.bound - 1e-9

    def worded(self) -> str:
        return f"{'✓' if self.holds else '✗'} {self.what}: {self.found:.4g} {self.sign} {self.bound:.4g}"


def switch_s(model: VirtualModel) -> float:
    """Return what one switch to a model takes, in 95 of 100: memory that comes back, and the load."""
    (back_s, back_most_s), (start_s, start_most_s) = RELEASE_S, START_S
    # Both are drawn evenly from ranges of one length; so much of that is added to both least values by 95 of 100.
    assert back_most_s - back_s == start_most_s - start_s
    return back_s + start_s + (2 - math.sqrt(0.1)) * (back_most_s - back_s) + model.size_bytes / PAGE_CACHE_BYTES_PER_S


class Must(NamedTuple):
    """The bounds of an hour as shipped: of waits, and of useful time as a share of FCFS's, without and with the prompt cache."""

    p95_s: float | None
    without: float
    cached: float
    longest_s: float | None = None


MUST = {
    "S1": Must(0.3, 0.92, 0.97, longest_s=1.0),
    "S2": Must(switch_s(GEMMA) + 0.5, 0.90, 0.90),
    "S3": Must(switch_s(GEMMA) + 0.5, 0.90, 0.90),
    "S4": Must(17.0, 0.70, 0.70),
    "S4w": Must(0.5, 0.60, 0.90),
    "S6": Must(0.5, 0.55, 0.95),
    "S7": Must(switch_s(GEMMA) + 0.5, 0.97, 0.97),
    "S7o": Must(switch_s(QWEN) + 0.5, 0.97, 0.97),
    "S9": Must(None, 1.0, 1.0),
    "S9e": Must(None, 1.0, 1.0),
}
NOBODY_MEETS = ("S1", "S6", "S9", "S9e")  # another model


def checks(rows: Rows) -> Iterator[Check]:
    """Check all that was played; what needs something that was not is left out."""
    queued = [item for (_, scheme, _), row in rows.items() for item in row if SCHEMES[scheme].clients is None]
    yield Check("all, with a queue: overlaps", sum(item.overlap_count for item in queued), "≤", 0)
    yield Check("all, with a queue: bytes above the budget", max((item.over_budget_bytes for item in queued), default=0), "≤", 0)
    yield Check("all, with a queue: starts inside a pause", sum(item.paused_starts for item in queued), "≤", 0)
    for (hour, scheme, cache), row in rows.items():
        where = f"{hour}, {SCHEMES[scheme].title}{', prompt cache' if cache else ''}"
        if scheme == SHIPPED:
            yield from _of_waits(where, hour, row)
            if (fcfs := rows.get((hour, FCFS, cache))) is not None:
                yield from _beside_fcfs(where, hour, cache, row, fcfs)
        if (hour, scheme) == ("S1", RESTART) and (drained := rows.get((hour, DRAIN, cache))) is not None:
            share = min(mine.completed / theirs.completed for mine, theirs in zip(row, drained, strict=True))
            p95_s = max(percentile(item.waits_s, 95) for item in row)
            what = f"{where}: batch jobs ended, as a share of those without preemption (people's p95 is {p95_s:.1f} s)"
            yield Check(what, share, "≥", 0.6)


def _of_waits(where: str, hour: str, row: Row) -> Iterator[Check]:
    must = MUST.get(hour)
    if must is not None and must.p95_s is not None:
        yield Check(f"{where}: wait p95 in s", max(percentile(item.waits_s, 95) for item in row), "≤", must.p95_s)
    if must is not None and must.longest_s is not None:
        yield Check(f"{where}: longest wait in s", max(max(item.waits_s) for item in row), "≤", must.longest_s)
    if hour == "S6o":
        yield Check(f"{where}: a batch job's longest time from its start in s", max(item.longest_s for item in row), "≤", 360.0)


def _beside_fcfs(where: str, hour: str, cache: bool, row: Row, fcfs: Row) -> Iterator[Check]:
    if hour in MUST:
        share = min(mine.useful / theirs.useful for mine, theirs in zip(row, fcfs, strict=True))
        yield Check(f"{where}: useful time as a share of FCFS's", share, "≥", MUST[hour].cached if cache else MUST[hour].without)
    pairs = list(zip(row, fcfs, strict=True))
    if hour == "S2b":
        yield Check(f"{where}: loads as a share of FCFS's", max(mine.loads / theirs.loads for mine, theirs in pairs), "≤", 0.5)
    elif hour in NOBODY_MEETS:
        yield Check(f"{where}: loads more than FCFS's", max(mine.loads - theirs.loads for mine, theirs in pairs), "≤", 0)
    else:
        # The nearest to its bound.
        mine, theirs = max(pairs, key=lambda pair: pair[0].loads - pair[1].loads - 2 * pair[0].met_count)
        bound = theirs.loads + 2 * mine.met_count
        yield Check(f"{where}: loads, of {mine.met_count} people's jobs that met another model", mine.loads, "≤", bound)


def of_expected(answers: Mapping[tuple[str, int], Answers]) -> Iterator[Check]:
    """Check the ranges of expected starts that jobs were shown, by hour and seed."""
    found = score(answers.values())
    yield Check("expected starts: the share inside the range shown", found.inside, "≥", 0.8)
    yield Check("expected starts: the share of ranges at most half as wide as the wait, or 2 s", found.narrow, "≥", 0.5)
    yield Check("expected starts: the share before the range", found.below, "≥", 0.05)
    yield Check("expected starts: the share after the range", found.above, "≥", 0.05)
