"""Owns what a sample tells: a number by the wall's clock, and one by the processors', which other work here hardly changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple


class Spent(NamedTuple):
    """What something took, in any unit."""

    wall: float
    cpu: float

    def over(self, other: Spent) -> Spent:
        return Spent(self.wall / other.wall, self.cpu / other.cpu)


def now() -> Spent:
    return Spent(time.perf_counter(), time.process_time())


def between(began: Spent, ended: Spent) -> Spent:
    return Spent(ended.wall - began.wall, ended.cpu - began.cpu)


def each(work: Callable[[], object], count: int) -> Spent:
    """Return what `count` calls took, in seconds."""
    began = now()
    for _ in range(count):
        work()
    return between(began, now())


def tell(found: Sequence[Spent]) -> None:
    """Print the medians."""
    print("wall", median(spent.wall for spent in found))
    print("cpu", median(spent.cpu for spent in found))
