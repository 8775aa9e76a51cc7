"""Parses and formats rates, and computes the bucket that enforces one; reads no clock and no row."""

from __future__ import annotations

import re

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.settings import Rate
from gpuqueue.domain.units import format_duration, parse_duration

RATE_EXAMPLES = '"10/m", "100/h", "1/30s", "5/d"'
_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9.]*)\s*([a-z]+)\s*")


def parse_rate(text: object) -> Rate:
    """Parse a rate such as `10/m`. Raises: UsageError with the value and valid examples."""
    match = _RATE.fullmatch(text.lower()) if isinstance(text, str) else None
    if match is None or int(match[1]) < 1:
        raise UsageError(f"invalid rate {text!r}. Expected for example {RATE_EXAMPLES}")
    per_s = parse_duration(f"{match[2] or 1}{match[3]}", what=f"the period of the rate {text!r}")
    if per_s <= 0:
        raise UsageError(f"the rate {text!r} has a period of zero. Expected for example {RATE_EXAMPLES}")
    return Rate(int(match[1]), per_s)


def format_rate(rate: Rate) -> str:
    """Format a rate for people: `10 in 1m`."""
    return f"{rate.count} in {format_duration(rate.per_s)}"


def level(rate: Rate, before: float | None, elapsed_s: float) -> float:
    """Return how many jobs may start now: what was left before, plus what has accrued since; at most the rate's count."""
    if before is None:
        return float(rate.count)
    return min(float(rate.count), before + max(0.0, elapsed_s) * rate.count / rate.per_s)


def next_in_s(rate: Rate, now: float) -> float:
    """Return how long it takes from this level until the next job may start."""
    return max(0.0, (1.0 - now) * rate.per_s / rate.count)
