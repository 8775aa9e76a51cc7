"""Parses and formats durations, sizes, and times as integer microseconds; never reads the clock."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.safe_text import safe_repr

__all__ = ["Duration", "format_duration", "format_size", "from_us", "parse_duration", "parse_size", "parse_time_us", "to_us"]

Duration = str | float | timedelta  # "90s", seconds, or a timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

DURATION_EXAMPLES = '"5m", "1h30m", "90s", "250ms", "2d"'
SIZE_EXAMPLES = '"5GB", "4.5GB", "512MB", "5GiB"'
WHOLE_BYTES = "a number without a unit is in bytes and must be an integer"

# In descending order, so that "30m1h" and "5m5m" can be rejected as mistakes.
DURATION_UNITS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}  # milliseconds
SIZE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

# A century: added to today, it still gives a valid date.
MAX_DURATION_S = 36_525 * 86_400
# 1 EiB: a sum of some is still an integer that SQLite stores.
MAX_SIZE_BYTES = 2**60
# A smaller number without a unit is rather one of another unit.
LEAST_BARE_BYTES = 10**6

NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*")
COMMA = re.compile(r"(?<=[0-9]),(?=[0-9])")
THOUSANDS = re.compile(r",[0-9]{3}(?![0-9])")


def parse_duration(value: object, *, what: str) -> float:
    """Parse a duration: a string with units, a number of seconds, or a timedelta.

    Returns: seconds, finite, from 0 to a century.
    Raises: UsageError naming `what`, the value and valid examples.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = _finite(value, what, DURATION_EXAMPLES)
    elif isinstance(value, str):
        seconds = _duration_of_text(value, what)
    else:
        raise _wrong(what, value, "a duration", DURATION_EXAMPLES)
    if seconds < 0:
        raise UsageError(f"{_is(what, value)}: a duration cannot be negative. Expected for example {DURATION_EXAMPLES}")
    if seconds > MAX_DURATION_S:
        raise UsageError(f"{_is(what, value)}: the maximum is 100 years. Expected for example {DURATION_EXAMPLES}")
    return seconds


def parse_size(value: object, *, what: str) -> int:
    """Parse an amount of memory: a string with a unit, or an integer number of bytes, 0 or at least a million.

    Returns: bytes, from 0 to 2**60; a fraction of a byte is dropped.
    Raises: UsageError naming `what`, the value and valid examples.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if _finite(value, what, SIZE_EXAMPLES) != math.floor(value):
            raise UsageError(f"{_is(what, value)}: {WHOLE_BYTES}. Expected for example {SIZE_EXAMPLES}")
        size = _bare(int(value), value, what)
    elif isinstance(value, str):
        size = _size_of_text(value, what)
    else:
        raise _wrong(what, value, "a size", SIZE_EXAMPLES)
    if size < 0:
        raise UsageError(f"{_is(what, value)}: a size cannot be negative. Expected for example {SIZE_EXAMPLES}")
    if size > MAX_SIZE_BYTES:
        raise UsageError(f"{_is(what, value)}: the size is too large. Expected for example {SIZE_EXAMPLES}")
    return size


def parse_time_us(value: object, *, what: str) -> int:
    """Check an aware datetime that every time zone can show, and convert it to microseconds since the epoch.

    Raises: UsageError naming `what`.
    """
    if not isinstance(value, datetime):
        raise UsageError(f"{what} must be an aware datetime, not {safe_repr(value)}")
    if value.utcoffset() is None:
        raise UsageError(f"{_is(what, value)}, which has no time zone; pass for example datetime.now(timezone.utc)")
    us = to_us(value)
    if not EARLIEST_US <= us <= LATEST_US:
        raise UsageError(f"{_is(what, value)}: a time must lie in the years 1000 to 9998")
    return us


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: `1 worker`, `3 workers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Format a duration for people: `250 ms`, `2.4 s`, `5m`, `1h 30m`, `2d 3h`; at most its two largest units."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 0.9995:
        milliseconds = round(seconds * 1000)
        return f"{milliseconds} ms" if milliseconds else "0 s"
    if seconds < 59.95:
        return f"{round(seconds, 1):g} s"
    # Rounded to the smaller unit shown first, so that 59m 59.7s becomes 1h and not 59m 60s.
    whole_s = round(seconds)
    if whole_s >= 3600:
        whole_s = round(seconds / 60) * 60
    if whole_s >= 86_400:
        whole_s = round(seconds / 3600) * 3600
    days, rest = divmod(whole_s, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (rest, "s"))
    return " ".join(f"{count}{unit}" for count, unit in parts if count)


def format_size(size_bytes: int) -> str:
    """Format an amount of memory for people, in decimal units: `4.5 GB`, `512 MB`, `0 B`."""
    if size_bytes < 0:
        return "-" + format_size(-size_bytes)
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        # 999.995 of the unit below would round to 1000 of it.
        if size_bytes >= unit - unit // 200_000:
            return f"{round(size_bytes / unit, 2):.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{size_bytes} B"


def to_us(moment: datetime) -> int:
    """Convert an aware datetime to microseconds since the epoch, exactly. Raises: UsageError for one without a time zone."""
    try:
        passed = moment - EPOCH
    except TypeError:
        raise UsageError(
            f"{safe_repr(moment)} has no time zone; pass an aware datetime, for example datetime.now(timezone.utc)"
        ) from None
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


EARLIEST_US, LATEST_US = (to_us(datetime(year, 1, 1, tzinfo=UTC)) for year in (1000, 9999))


def from_us(microseconds: int) -> datetime:
    """Convert microseconds since the epoch to an aware UTC datetime, exactly."""
    return EPOCH + timedelta(microseconds=microseconds)


def _duration_of_text(text: str, what: str) -> float:
    amounts = _amounts(text)
    if amounts is None:
        raise _wrong(what, text, "a duration", DURATION_EXAMPLES)
    if len(amounts) == 1 and not amounts[0][1]:
        return _finite(float(amounts[0][0]), what, DURATION_EXAMPLES)
    order = list(DURATION_UNITS)
    last = -1
    from fractions import Fraction  # imported here: it takes 1 ms, and a process that only enqueues does not need it

    total_ms = Fraction(0)
    for number, unit in amounts:
        if unit not in DURATION_UNITS:
            problem = f"unknown unit {unit!r}" if unit else f"{number} has no unit"
            raise UsageError(f"{_is(what, text)}: {problem}; use d, h, m, s or ms. Expected for example {DURATION_EXAMPLES}")
        if order.index(unit) <= last:
            raise UsageError(f"{_is(what, text)}: write each unit once, largest first. Expected for example {DURATION_EXAMPLES}")
        last = order.index(unit)
        total_ms += Fraction(number) * DURATION_UNITS[unit]
    if total_ms > MAX_DURATION_S * 1000:
        raise UsageError(f"{_is(what, text)}: the maximum is 100 years. Expected for example {DURATION_EXAMPLES}")
    return float(total_ms / 1000)


def _size_of_text(text: str, what: str) -> int:
    amounts = _amounts(text)
    if amounts is None or len(amounts) != 1:
        raise _wrong(what, text, "a size", SIZE_EXAMPLES)
    number, unit = amounts[0]
    if not unit and "." not in number:
        return _bare(int(number), text, what)
    if unit in {"k", "m", "g", "t"}:
        clear = f'"{number}{unit.upper()}B" (powers of 1000) or "{number}{unit.upper()}iB" (powers of 1024)'
        raise UsageError(f"{_is(what, text)}: the unit is ambiguous; write {clear}")
    if unit not in SIZE_UNITS:
        problem = f"unknown unit {unit!r}" if unit else WHOLE_BYTES
        raise UsageError(f"{_is(what, text)}: {problem}; use MB, GB, MiB or GiB. Expected for example {SIZE_EXAMPLES}")
    from fractions import Fraction

    return int(Fraction(number) * SIZE_UNITS[unit])


def _bare(size: int, value: object, what: str) -> int:
    """Refuse a number of bytes that is meant in another unit. Raises: UsageError."""
    if 0 < size < LEAST_BARE_BYTES:
        raise UsageError(
            f'{_is(what, value)}: a number without a unit is in bytes; write the unit, for example "{size}GB" or "{size}B"'
        )
    return size


def _amounts(text: str) -> list[tuple[str, str]] | None:
    """Split `1h 30m` into its (number, unit) pairs; None if it does not consist of those."""
    rest = text.strip().lower()
    # Anything longer is not a number, and int() of a very long string raises its own error.
    if not rest or len(rest) > 60:
        return None
    amounts = []
    while rest:
        match = AMOUNT.match(rest)
        if match is None:
            return None
        amounts.append((match[1], match[2]))
        rest = rest[match.end() :]
    return amounts


def _finite(value: float, what: str, examples: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UsageError(f"{what} must be a finite number, not {safe_repr(value)}. Expected for example {examples}")
    return number


def _wrong(what: str, value: object, kind: str, examples: str) -> UsageError:
    text = value.strip() if isinstance(value, str) else ""
    if COMMA.search(text):
        return UsageError(
            f'{_is(what, value)}: commas are not supported; write "{COMMA.sub(".", text)}"'
            + (f' or "{COMMA.sub("", text)}"' if THOUSANDS.search(text) else "")
        )
    if text.startswith("-") and NUMBER.match(text[1:]):
        return UsageError(f"{_is(what, value)}: {kind} cannot be negative. Expected for example {examples}")
    return UsageError(f"{what} must be {kind}, not {safe_repr(value)}. Expected for example {examples}")


def _is(what: str, value: object) -> str:
    return f"{what} is {safe_repr(value)}"
