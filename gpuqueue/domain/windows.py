"""Parses weekly windows and time zones, and computes when windows are open; never reads the clock.

A window is written in local time, which may jump. An edge inside a skipped hour is the first instant after it; in a repeated
hour, a window starts at the first occurrence and ends at the second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING

from gpuqueue.domain.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

__all__ = ["Window", "parse_window", "parse_zone"]

DAY_MINUTES = 24 * 60
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
FULL_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
EVERY_DAY = frozenset(range(7))
WINDOW_EXAMPLES = '"09:00-18:00", "22:00-06:00", "mon-fri 09:00-18:00", "sat,sun 00:00-24:00"'
ZONE_EXAMPLES = '"Asia/Bangkok", "Europe/Berlin", "UTC"'

HOURS = re.compile(r"(?:(?P<days>.*[^\s-])\s+)?(?P<start>[0-9]{1,2}:[0-9]{2})\s*-\s*(?P<end>[0-9]{1,2}:[0-9]{2})")


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day on given `weekdays` (Monday is 0), which are the days it starts on; it may end on the next day."""

    weekdays: frozenset[int]
    start_minute: int  # of the day it starts on, 0..1439
    end_minute: int  # of the same day, at most 1440; less than the start means the next day

    @property
    def length_minutes(self) -> int:
        """Return its length on a day without a clock change."""
        over_midnight = DAY_MINUTES if self.end_minute < self.start_minute else 0
        return self.end_minute - self.start_minute + over_midnight

    def __str__(self) -> str:
        hours = f"{_clock(self.start_minute)}-{_clock(self.end_minute)}"
        return hours if self.weekdays == EVERY_DAY else f"{_days_text(self.weekdays)} {hours}"


@lru_cache(maxsize=512)
def parse_window(text: str) -> Window:
    """Parse a window such as `mon-fri 09:00-18:00`.

    Raises: UsageError with the value, the problem, and valid examples.
    """
    # Word processors turn the hyphen into a dash.
    match = HOURS.fullmatch(text.strip().lower().replace("–", "-"))
    if match is None:
        raise UsageError(f"invalid window {text!r}. Expected for example {WINDOW_EXAMPLES}")
    start = _minute(match["start"], text)
    end = _minute(match["end"], text)
    if start == DAY_MINUTES:
        raise UsageError(f"the window {text!r} starts at 24:00; use 00:00 (and the next weekday, if it names one)")
    if start == end:
        raise UsageError(f"the window {text!r} starts and ends at the same time; for the whole day, use 00:00-24:00")
    weekdays = _weekdays(match["days"], text) if match["days"] else EVERY_DAY
    return Window(weekdays, start, end)


def parse_zone(name: str) -> ZoneInfo:
    """Find a time zone by its IANA name.

    Raises: UsageError with the name, the nearest known one, and valid examples.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        return ZoneInfo(name)
    # A folder of the zone database ("Asia") is reported by the operating system.
    except (ZoneInfoNotFoundError, ValueError, OSError):
        zones = sorted(available_timezones())
        same = [zone for zone in zones if zone.lower() == name.lower()]
        near = f" (did you mean {same[0]!r}?)" if same else did_you_mean(name, zones)
        raise UsageError(f"unknown time zone {name!r}{near}. Expected for example {ZONE_EXAMPLES}") from None


def _minute(clock: str, text: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if minutes > 59 or hours * 60 + minutes > DAY_MINUTES:
        raise UsageError(
            f"{clock!r} in the window {text!r} is not a time from 00:00 to 24:00. Expected for example {WINDOW_EXAMPLES}"
        )
    return hours * 60 + minutes


def _weekdays(days: str, text: str) -> frozenset[int]:
    found: set[int] = set()
    for item in days.split(","):
        first, dash, last = (part.strip() for part in item.partition("-"))
        start = _weekday(first, text)
        end = _weekday(last, text) if dash else start
        # "fri-mon" wraps around the end of the week.
        found.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return frozenset(found)


def _weekday(name: str, text: str) -> int:
    for names in (WEEKDAYS, FULL_WEEKDAYS):
        if name in names:
            return names.index(name)
    near = did_you_mean(name, [*WEEKDAYS, *FULL_WEEKDAYS])
    raise UsageError(f"unknown weekday {name!r}{near} in the window {text!r}. Weekdays: {', '.join(WEEKDAYS)}")


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _days_text(weekdays: frozenset[int]) -> str:
    """Format weekdays as ranges, `mon-wed,sat`; one that wraps around the end of the week is a single range, `sat-mon`."""
    starts = [day for day in sorted(weekdays) if (day - 1) % 7 not in weekdays]
    runs = []
    for start in starts:
        length = 1
        while (start + length) % 7 in weekdays:
            length += 1
        joint = "-" if length > 2 else ","
        runs.append(WEEKDAYS[start] + (joint + WEEKDAYS[(start + length - 1) % 7] if length > 1 else ""))
    return ",".join(runs)


# Returned by `held_until` if the windows cover every minute of the week.
FOREVER = datetime.max.replace(tzinfo=UTC)


WEEK_MINUTES = 7 * DAY_MINUTES
DAY = timedelta(days=1)


# A weekly window that falls into the skipped hour is empty that week; this sees the next one and the one after.
LOOK_AHEAD_DAYS = 22


def held_until(windows: Sequence[Window], zone: tzinfo, now: datetime) -> datetime | None:
    """Return when the windows that are open at `now` end; windows that overlap or adjoin count as one.

    Returns: an aware UTC datetime; None if no window is open; FOREVER if the windows cover the whole week.
    """
    free_at = now
    while True:
        ends = [end for window in windows if (end := open_until(window, zone, free_at))]
        if not ends:
            return free_at.astimezone(UTC) if free_at > now else None
        if _cover_week(tuple(windows)):
            return FOREVER
        free_at = max(ends)


def next_edge(windows: Sequence[Window], zone: tzinfo, now: datetime) -> datetime | None:
    """Return when a window next starts or ends to hold the queue, strictly after `now`.

    Returns: an aware UTC datetime; None if that never changes.
    """
    until = held_until(windows, zone, now)
    if until is not None:
        return None if until == FOREVER else until
    starts = [
        start
        for window in windows
        for start, end in occurrences(window, zone, _local_date(now, zone) - DAY, days=LOOK_AHEAD_DAYS)
        if now < start < end
    ]
    return min(starts, default=None)


def open_until(window: Window, zone: tzinfo, now: datetime) -> datetime | None:
    nearby = occurrences(window, zone, _local_date(now, zone) - 2 * DAY, days=4)
    return max((end for start, end in nearby if start <= now < end), default=None)


def occurrences(window: Window, zone: tzinfo, first: date, *, days: int) -> Iterator[tuple[datetime, datetime]]:
    for step in range(days):
        day = first + step * DAY
        if day.weekday() in window.weekdays:
            yield _occurrence(window, zone, day)


@lru_cache(maxsize=4096)
def _occurrence(window: Window, zone: tzinfo, day: date) -> tuple[datetime, datetime]:
    """Return the instants (UTC) at which the window of `day` starts and ends."""
    midnight = datetime.combine(day, time())
    start = midnight + timedelta(minutes=window.start_minute)
    end = start + timedelta(minutes=window.length_minutes)
    return _instant(start, zone, fold=0), _instant(end, zone, fold=1)


def _instant(local: datetime, zone: tzinfo, *, fold: int) -> datetime:
    """Return the instant at which the clock shows `local`: of two, the one that `fold` selects; if skipped, the next one."""
    instant = local.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None, fold=0) == local:
        return instant
    # For a skipped time, fold 1 gives an instant before the jump and fold 0 one after it.
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    after = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    offset_after = after.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset_after:
            high = middle
        else:
            low = middle
    return before + timedelta(seconds=high)


def _local_date(moment: datetime, zone: tzinfo) -> date:
    return moment.astimezone(zone).date()


@lru_cache(maxsize=512)
def _cover_week(windows: tuple[Window, ...]) -> bool:
    covered: set[int] = set()
    for window in windows:
        for day in window.weekdays:
            start = day * DAY_MINUTES + window.start_minute
            covered.update((start + step) % WEEK_MINUTES for step in range(window.length_minutes))
    return len(covered) == WEEK_MINUTES
