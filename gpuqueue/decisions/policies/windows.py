"""Owns the windows of the week: when a queue is held, or may do less; never reads the clock.

A window is written in local time, and the clock may jump. An edge inside the hour that is skipped is the first
instant after it; in an hour that comes twice a start takes the first, an end the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, PlaceJobDetails, QueueHoldDetails, QueueLimitsDetails, hookimpl
from gpuqueue.domain.estimates import RUN, run_s
from gpuqueue.domain.job import Hold, Limits, Preemption, QueueSettings, View, Wait
from gpuqueue.domain.units import format_duration
from gpuqueue.domain.windows import DAY_MINUTES, Window, parse_window, parse_zone

__all__ = ["FOREVER", "Windows", "held_until", "next_edge", "parse_window"]

# What `held_until` answers when the windows leave no minute of the week free.
FOREVER = datetime.max.replace(tzinfo=UTC)

WEEK_MINUTES = 7 * DAY_MINUTES
DAY = timedelta(days=1)
# A weekly window that falls into the skipped hour is empty that week; this sees the next one and the one after.
LOOK_AHEAD_DAYS = 22


class Windows:
    """Holds a queue inside its `pause` windows, and tightens its limits inside its `windows`.

    A queue's `overrun` says what becomes of a job that would run into a pause: it finishes; it is stopped when the pause
    begins, unspent; or it does not start when it usually takes longer than is left.
    """

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        queue = details.queue
        if not queue.pause:
            return None
        now = details.view.now
        windows, zone = _pause(queue)
        until = held_until(windows, zone, now)
        if until is None:
            return _too_late(queue, details.view) if queue.overrun == "dont_start" and not queue.gpu else None
        if until == FOREVER:
            texts = ", ".join(str(window) for window in windows)
            return Hold("window", f"paused at all times: {texts} {queue.timezone} leaves no minute of the week free")
        texts = ", ".join(str(window) for window in windows if _open_until(window, zone, now))
        return Hold("window", f"paused {texts} {queue.timezone}", until)

    @hookimpl
    def queue_limits(self, details: QueueLimitsDetails) -> Limits | None:
        queue = details.queue
        zone = parse_zone(queue.timezone) if queue.windows else UTC
        rules = [rule for rule in queue.windows if _open_until(parse_window(rule.at), zone, details.now)]
        if not rules:
            return None
        concurrencies = [rule.concurrency for rule in rules if rule.concurrency is not None]
        rates = [rule.rate for rule in rules if rule.rate is not None]
        return Limits(
            min(concurrencies, default=None),
            min(rates, key=lambda rate: rate.count / rate.per_s, default=None),
            f"its window {', '.join(str(parse_window(rule.at)) for rule in rules)} {queue.timezone}",
        )

    @hookimpl
    def place_job(self, details: PlaceJobDetails) -> Wait | None:
        queue, job, view = details.queue, details.job, details.view
        if queue.overrun != "dont_start" or not queue.pause:
            return None
        usual_s = run_s(view.estimates, queue.name, job.task, details.demand.model)
        found = None if usual_s is None else _runs_into(queue, usual_s, view.now)
        if found is None:
            return None
        left_s, until = found
        return Wait("window_near", _near(usual_s or 0.0, left_s), until)

    @hookimpl
    def choose_preemptions(self, details: ChoosePreemptionsDetails) -> Sequence[Preemption]:
        chosen = []
        for device in details.view.devices.values():
            for item in device.reservations:
                queue = details.view.queues[item.queue].settings if item.queue in details.view.queues else None
                if queue is None or queue.overrun != "preempt" or not queue.pause or not item.running:
                    continue
                if item.preemptible and not item.preempt_requested and held_until(*_pause(queue), details.view.now):
                    chosen.append(Preemption(item.job_id, item.lease))
        return chosen


def _pause(queue: QueueSettings) -> tuple[tuple[Window, ...], tzinfo]:
    return tuple(parse_window(text) for text in queue.pause), parse_zone(queue.timezone)


def _runs_into(queue: QueueSettings, usual_s: float, now: datetime) -> tuple[float, datetime | None] | None:
    """Say how long is left and when the pause ends, where a job that takes so long would run into it."""
    windows, zone = _pause(queue)
    edge = next_edge(windows, zone, now)
    if edge is None or usual_s <= (edge - now).total_seconds():
        return None
    until = held_until(windows, zone, edge)
    return (edge - now).total_seconds(), None if until == FOREVER else until


def _too_late(queue: QueueSettings, view: View) -> Hold | None:
    """Hold a queue without a GPU shortly before its pause: its jobs are not looked at one by one, so the longest kind counts."""
    longest_s = max((found.value for (kind, key), found in view.estimates.items() if _is_of(kind, key, queue)), default=None)
    found = None if longest_s is None else _runs_into(queue, longest_s, view.now)
    if found is None:
        return None
    left_s, until = found
    return Hold("window_near", _near(longest_s or 0.0, left_s), until)


def _is_of(kind: str, key: str, queue: QueueSettings) -> bool:
    return kind == RUN and key.startswith(f"{queue.name} ")


def _near(usual_s: float, left_s: float) -> str:
    return f"it usually runs {format_duration(usual_s)}, and a pause begins in {format_duration(left_s)}"


def held_until(windows: Sequence[Window], zone: tzinfo, now: datetime) -> datetime | None:
    """Say when the windows open at `now` leave the queue free: windows that overlap or adjoin count as one.

    Returns: an aware UTC datetime; None when no window is open; FOREVER when the windows cover the whole week.
    """
    free_at = now
    while True:
        ends = [end for window in windows if (end := _open_until(window, zone, free_at))]
        if not ends:
            return free_at.astimezone(UTC) if free_at > now else None
        if _cover_week(tuple(windows)):
            return FOREVER
        free_at = max(ends)


def next_edge(windows: Sequence[Window], zone: tzinfo, now: datetime) -> datetime | None:
    """Say when the queue is next held or freed by its windows, strictly after `now`.

    Returns: an aware UTC datetime; None when that never changes.
    """
    until = held_until(windows, zone, now)
    if until is not None:
        return None if until == FOREVER else until
    starts = [
        start
        for window in windows
        for start, end in _occurrences(window, zone, _local_date(now, zone) - DAY, days=LOOK_AHEAD_DAYS)
        if now < start < end
    ]
    return min(starts, default=None)


def _open_until(window: Window, zone: tzinfo, now: datetime) -> datetime | None:
    nearby = _occurrences(window, zone, _local_date(now, zone) - 2 * DAY, days=4)
    return max((end for start, end in nearby if start <= now < end), default=None)


def _occurrences(window: Window, zone: tzinfo, first: date, *, days: int) -> Iterator[tuple[datetime, datetime]]:
    for step in range(days):
        day = first + step * DAY
        if day.weekday() in window.weekdays:
            yield _occurrence(window, zone, day)


@lru_cache(maxsize=4096)
def _occurrence(window: Window, zone: tzinfo, day: date) -> tuple[datetime, datetime]:
    """Find the instants (UTC) between which the window that starts on `day` is open."""
    midnight = datetime.combine(day, time())
    start = midnight + timedelta(minutes=window.start_minute)
    end = start + timedelta(minutes=window.length_minutes)
    return _instant(start, zone, fold=0), _instant(end, zone, fold=1)


def _instant(local: datetime, zone: tzinfo, *, fold: int) -> datetime:
    """Find the instant at which the clock shows `local`: of two the one that `fold` says, of none the first after."""
    instant = local.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None, fold=0) == local:
        return instant
    # Of a skipped time, fold 1 makes an instant before the jump and fold 0 one after it.
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
