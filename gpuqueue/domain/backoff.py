"""Computes how long a failed job waits before its next attempt: kinds of backoff, with a cap and jitter.

@gq.task(max_attempts=5, backoff=backoff.exponential("10s", cap="30m"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.units import Duration, parse_duration

DEFAULT_CAP = "1h"
DEFAULT_JITTER = 0.2
LARGEST_FACTOR = 1_000
LEAST_POWER = 0.01


@dataclass(frozen=True, slots=True)
class Backoff:
    """`wait` returns how long to wait after an attempt, given its number (1 for the first); each wait is at most `cap_s`.

    `jitter` is the fraction of each wait that may be cut at random, so that jobs that failed together do not retry together.
    """

    wait: Callable[[int], Duration]
    cap_s: float
    jitter: float

    def wait_s(self, attempt: int, chance: float) -> float:
        """Return the wait after an attempt in seconds; `chance` is from 0 to 1. Raises: UsageError for an invalid `wait`."""
        seconds = parse_duration(self.wait(attempt), what="backoff")
        return min(seconds, self.cap_s) * (1 - self.jitter * chance)


def exponential(
    first: Duration = "5s", *, factor: float = 2, cap: Duration = DEFAULT_CAP, jitter: float = DEFAULT_JITTER
) -> Backoff:
    """Wait `first`, then `factor` times longer after each attempt. Raises: UsageError."""
    first_s = parse_duration(first, what="first")
    growth = _number(factor, what="factor", least=1, most=LARGEST_FACTOR)

    def wait(attempt: int) -> float:
        try:
            return min(first_s * growth ** (attempt - 1), _cap_s(cap))
        except OverflowError:
            return _cap_s(cap)

    return custom(wait, cap=cap, jitter=jitter)


def polynomial(
    first: Duration = "5s", *, power: float = 2, cap: Duration = DEFAULT_CAP, jitter: float = DEFAULT_JITTER
) -> Backoff:
    """Wait `first` times the attempt's number raised to `power`. Raises: UsageError."""
    first_s = parse_duration(first, what="first")
    exponent = _number(power, what="power", least=LEAST_POWER, most=10)
    return custom(lambda attempt: min(first_s * attempt**exponent, _cap_s(cap)), cap=cap, jitter=jitter)


def fixed(wait: Duration, *, jitter: float = DEFAULT_JITTER) -> Backoff:
    """Wait the same time after each attempt. Raises: UsageError."""
    wait_s = parse_duration(wait, what="wait")
    return custom(lambda _attempt: wait_s, cap=wait_s, jitter=jitter)


def custom(wait: Callable[[int], Duration], *, cap: Duration = DEFAULT_CAP, jitter: float = DEFAULT_JITTER) -> Backoff:
    """Wait as long as a function of the attempt's number returns: "5m", seconds or a timedelta. Raises: UsageError."""
    if not callable(wait):
        raise UsageError(f"wait must be a function of the attempt's number, not {safe_repr(wait)}")
    return Backoff(wait, _cap_s(cap), _number(jitter, what="jitter", least=0, most=1))


def read_backoff(given: Backoff | Callable[[int], Duration] | str) -> Backoff:
    """Take a Backoff, the name of a kind with its defaults, or a function of the attempt's number. Raises: UsageError."""
    kinds: dict[str, Callable[[], Backoff]] = {"exponential": exponential, "polynomial": polynomial}
    if isinstance(given, Backoff):
        return given
    if isinstance(given, str) and given in kinds:
        return kinds[given]()
    if callable(given):
        return custom(given)
    raise UsageError(
        f"backoff must be backoff.exponential(…), polynomial(…), fixed(…) or custom(…), "
        f"the name 'exponential' or 'polynomial', or a function of the attempt's number, not {safe_repr(given)}"
    )


def _number(value: object, *, what: str, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{what} must be a number from {least:g} to {most:g}, not {safe_repr(value)}")
    return float(value)


def _cap_s(cap: Duration) -> float:
    return parse_duration(cap, what="cap")
