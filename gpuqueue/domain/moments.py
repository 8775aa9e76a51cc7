"""Formats times: for people in this machine's time zone, for machines in UTC; reads no clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

from gpuqueue.domain.units import format_duration


def clock(moment: datetime, *, now: datetime, exact: bool = False) -> str:
    """Format a time for people, in this machine's time zone: `18:00 UTC`, with the date unless it is today.

    Seconds are included within 10 minutes of `now`, or if `exact`.
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
    """Format an end time: ` until 18:00 UTC (2h 5m from now)`; "" without one."""
    if moment is None:
        return ""
    left_s = (moment - now).total_seconds()
    return f" until {clock(moment, now=now)}" + (f" ({format_duration(left_s)} from now)" if left_s > 0 else "")


def since(moment: datetime, *, now: datetime) -> str:
    """Format how long ago: `2m ago`."""
    return f"{format_duration(max(0.0, (now - moment).total_seconds()))} ago"


@overload
def iso(moment: datetime) -> str: ...
@overload
def iso(moment: datetime | None) -> str | None: ...
def iso(moment: datetime | None) -> str | None:
    """Format a time for machines: ISO 8601 in UTC, always with milliseconds: `2026-03-02T12:00:00.000Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
