"""Compares the ranges of expected starts that an hour's jobs were shown with when they started.

`python -m tests.benchmarks.scheduling.expected` prints how many starts lay in the range shown, below it and above it, and
how many ranges were narrow. Each job counts once, with the mean of what it was shown: when it was enqueued, and in each later
minute of its wait. What was learned is empty when the hour begins; a job that was shown no range counts as missed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from gpuqueue import JobHandle
from gpuqueue.domain.units import to_us
from gpuqueue.testing.virtual import VirtualQueue, VirtualTime
from tests.benchmarks.scheduling.hours import HOUR_S, HOURS
from tests.benchmarks.scheduling.play import SCHEMES, SHIPPED, play

ASKED_EVERY_S = 60.0
SHORT_S = 2.0  # a range of this width is narrow, however short the wait


class Shown(NamedTuple):
    """What a job was shown at one time: when it starts at the earliest and at the latest; None for no range."""

    at_s: float
    earliest_s: float | None
    latest_s: float | None


@dataclass
class Answers:
    """What each job of an hour was shown, its queue, and when it started."""

    shown: dict[int, list[Shown]] = field(default_factory=dict)
    queues: dict[int, str] = field(default_factory=dict)
    starts_s: dict[int, float] = field(default_factory=dict)


class Asking:
    """Asks for the expected start of each job of an hour."""

    def __init__(self) -> None:
        self.answers = Answers()

    def begin(self, gq: VirtualQueue, time: VirtualTime) -> None:
        self._gq, self._time, self._began_us = gq, time, time.wall()
        for minute in range(1, int(HOUR_S / ASKED_EVERY_S)):
            # The worker is woken first, and writes down how far its jobs are.
            time.call_at(minute * ASKED_EVERY_S, gq.store.wakeups.ring_workers)
            time.call_at(minute * ASKED_EVERY_S + 0.01, self._ask_all)

    def enqueued(self, job: JobHandle) -> None:
        self.answers.queues[job.id] = job.record.queue
        self._ask(job.id)

    def end(self) -> None:
        self._note_starts()

    def _ask_all(self) -> None:
        self._note_starts()
        for job_id in self.answers.queues:
            if job_id not in self.answers.starts_s:
                self._ask(job_id)

    def _note_starts(self) -> None:
        """Note the first start of each job, which a later attempt's replaces in its row."""
        with self._gq.store.reading() as reads:
            for job_id in self.answers.queues:
                if job_id not in self.answers.starts_s:
                    attempts = [attempt["started_at"] for attempt in reads.timeline(job_id)]
                    began = [moment for moment in (*attempts, reads.job(job_id).started_at) if moment is not None]
                    if began:
                        self.answers.starts_s[job_id] = self._seconds(min(began))

    def _ask(self, job_id: int) -> None:
        expected, shown = self._gq.explain(job_id).expected, self.answers.shown.setdefault(job_id, [])
        if expected is None or expected.start_earliest is None or expected.start_latest is None:
            shown.append(Shown(self._time.now_s, None, None))
        else:
            range_s = self._seconds(expected.start_earliest), self._seconds(expected.start_latest)
            shown.append(Shown(self._time.now_s, *range_s))

    def _seconds(self, moment: datetime) -> float:
        return (to_us(moment) - self._began_us) / 1e6


class Score(NamedTuple):
    """Shares of the starts: in the range shown, before it, after it, without one; and of the ranges: the narrow ones."""

    starts: int
    inside: float
    below: float
    above: float
    unknown: float
    narrow: float


def score(answers: Iterable[Answers], *, queue: str | None = None, first: bool = False) -> Score:
    """Score what was shown; `first`: only what a job was shown when it was enqueued."""
    weights: dict[str, float] = defaultdict(float)
    starts = 0
    for asked in answers:
        for job_id, start_s in asked.starts_s.items():
            if queue not in (None, asked.queues[job_id]):
                continue
            starts += 1
            shown = asked.shown[job_id][: 1 if first else None]
            for item in shown:
                for verdict in _verdicts(item, start_s):
                    weights[verdict] += 1 / len(shown)
    ranges = starts - weights["unknown"]
    inside, below, above, unknown = (weights[name] / max(starts, 1) for name in ("inside", "below", "above", "unknown"))
    return Score(starts, inside, below, above, unknown, weights["narrow"] / max(ranges, 1e-9))


def _verdicts(shown: Shown, start_s: float) -> Iterable[str]:
    if shown.earliest_s is None or shown.latest_s is None:
        yield "unknown"
        return
    yield "below" if start_s < shown.earliest_s else "above" if start_s > shown.latest_s else "inside"
    if shown.latest_s - shown.earliest_s <= max(SHORT_S, (start_s - shown.at_s) / 2):
        yield "narrow"


def ask(case: tuple[str, str, bool, int]) -> Answers:
    """Play an hour under a scheme, with the prompt cache or without it, and ask meanwhile."""
    hour, scheme, prompt_cache, seed = case
    logging.disable(logging.CRITICAL)  # at the end of an hour jobs are still running
    asking = Asking()
    play(HOURS[hour], SCHEMES[scheme], seed=seed, prompt_cache=prompt_cache, observer=asking)
    return asking.answers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scheduling.expected", description=__doc__)
    parser.add_argument("--hour", action="append", choices=tuple(HOURS), help="only this hour; otherwise S1, S2 and S3")
    parser.add_argument("--scheme", default=SHIPPED, choices=tuple(SCHEMES))
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="only the first N seeds")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    asked = parser.parse_args()
    hours = asked.hour or ["S1", "S2", "S3"]
    cases = [(hour, asked.scheme, True, seed) for hour in hours for seed in range(1, asked.seeds + 1)]
    with ProcessPoolExecutor(asked.processes) as processes:
        found = dict(zip(cases, processes.map(ask, cases), strict=True))
    print(f"{'':28}{'starts':>8}{'inside':>8}{'below':>8}{'above':>8}{'none':>8}{'narrow':>8}")
    _print("all hours", found.values())
    for hour in hours:
        _print(hour, [answers for case, answers in found.items() if case[0] == hour])
    return 0


def _print(title: str, answers: Iterable[Answers]) -> None:
    made = list(answers)
    queues = sorted({queue for item in made for queue in item.queues.values()})
    rows: Mapping[str, Score] = {
        title: score(made),
        "  when enqueued": score(made, first=True),
        **{f"  {queue}": score(made, queue=queue) for queue in queues},
    }
    for name, row in rows.items():
        print(f"{name:28}{row.starts:>8}" + "".join(f"{share:>8.2f}" for share in row[1:]))


if __name__ == "__main__":
    sys.exit(main())
