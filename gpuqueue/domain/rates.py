"""Parses and formats rates, and computes the bucket that enforces one; reads no clock and no row."""

from __future__ import annotations

import re

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.settings import Rate
from gpuqueue.domain.units import format_duration, parse_duration

RATE_EXAMPLES = '"10/m", "100/h", "1/30s", "5/d"'
LARGEST_COUNT = 999_999_999
_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9.]*)\s*([a-z]+)\s*")


def parse_rate(text: object) -> Rate:
    """Parse a rate such as `10/m`, or check a Rate. Raises: UsageError with the value and valid examples."""
    if isinstance(text, Rate):
        return _checked(text)
    match = _RATE.fullmatch(text.lower()) if isinstance(text, str) else None
    if match is None or int(match[1]) < 1:
        raise UsageError(f"invalid rate {safe_repr(text)}. Expected for example {RATE_EXAMPLES}")
    per_s = parse_duration(f"{match[2] or 1}{match[3]}", what=f"the period of the rate {text!r}")
    if per_s <= 0:
        raise UsageError(f"the rate {text!r} has a period of zero. Expected for example {RATE_EXAMPLES}")
    return Rate(int(match[1]), per_s)


def _checked(rate: Rate) -> Rate:
    count = rate.count
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= LARGEST_COUNT:
        raise UsageError(f"the count of a Rate must be an integer from 1 to {LARGEST_COUNT}, not {safe_repr(count)}")
    per_s = parse_duration(rate.per_s, what="per_s of a Rate")
    if per_s <= 0 or isinstance(rate.per_s, str):
        raise UsageError(f"per_s of a Rate must be a number of seconds above 0, not {safe_repr(rate.per_s)}")
    return Rate(count, per_s)


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
