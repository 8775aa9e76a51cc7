"""Checks the numbers that a caller gives: whole ones, ids, and seconds to wait; each has limits, and a sentence says them."""

from __future__ import annotations

import math

from gpuqueue.domain.errors import UnknownJob, UsageError
from gpuqueue.domain.safe_text import safe_repr

LARGEST = 2**63 - 1  # the largest integer that SQLite stores
LONGEST_WAIT_S = 1e9  # some decades: a larger number means without end


def whole_number(value: object, *, what: str, minimum: int = 0, maximum: int = LARGEST) -> int:
    """Check an integer. Raises: UsageError naming `what` and the limits."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        limits = f"of at least {minimum}" if maximum == LARGEST else f"from {minimum} to {maximum}"
        raise UsageError(f"{what} must be an integer {limits}, not {safe_repr(value)}")
    return value


def job_id(value: object) -> int:
    """Check a job's id. Raises: UsageError if it is not an integer; UnknownJob if no job can have it."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"a job's id must be an integer, not {safe_repr(value)}")
    if not 1 <= value <= LARGEST:
        raise UnknownJob(value)
    return value


def wait_s(value: object, *, what: str) -> float:
    """Check how long to wait; a negative number is no wait. Raises: UsageError naming `what`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        raise UsageError(f"{what} must be a number of seconds or None, not {safe_repr(value)}")
    return float(max(0, min(value, LONGEST_WAIT_S)))
