"""Owns how a moment is written: for people in this machine's time zone, for machines in UTC; reads no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

from gpuqueue.domain.units import format_duration


def clock(moment: datetime, *, now: datetime, exact: bool = False) -> str:
    """Write a moment for people, in this machine's time zone: `18:00 UTC`, and with the date unless it is today.

    Seconds are written near `now`, or when it is to be `exact`.
    """
    local = moment.astimezone()
    today = now.astimezone().date()
    seconds = f":{local.second:02d}" if exact or abs(moment - now) < timedelta(minutes=10) else ""
    time_ = f"{local:%H:%M}{seconds} {local:%Z}"
    if local.date() == today:
        return time_
    if local.date() == today + timedelta(days=1) and local > now:
        return f"tomorrow {time_}"
    return f"{local:%Y-%m-%d} {time_}"


def until(moment: datetime | None, *, now: datetime) -> str:
    """Word until when: ` until 18:00 UTC (2h 5m from now)`, or nothing."""
    if moment is None:
        return ""
    left_s = (moment - now).total_seconds()
    return f" until {clock(moment, now=now)}" + (f" ({format_duration(left_s)} from now)" if left_s > 0 else "")


def since(moment: datetime, *, now: datetime) -> str:
    """Word how long ago: `2m ago`."""
    return f"{format_duration(max(0.0, (now - moment).total_seconds()))} ago"


@overload
def iso(moment: datetime) -> str: ...
@overload
def iso(moment: datetime | None) -> str | None: ...
def iso(moment: datetime | None) -> str | None:
    """Write a moment for machines: ISO 8601 in UTC, always with milliseconds: `2026-03-02T12:00:00.000Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
