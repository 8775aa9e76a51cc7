"""Applies weekly windows, in which a queue is paused or has tighter limits; never reads the clock.

Windows are in local time, and the clock may jump. An edge in a skipped hour moves to the first instant after it.
In a repeated hour, a start is in the first one and an end in the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, PlaceJobDetails, QueueHoldDetails, QueueLimitsDetails, hookimpl
from gpuqueue.domain.answers import Hold, Limits, Preemption, Wait
from gpuqueue.domain.estimates import RUN, run_s
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import format_duration
from gpuqueue.domain.view import View
from gpuqueue.domain.windows import FOREVER, Window, held_until, next_edge, open_until, parse_window, parse_zone

__all__ = ["FOREVER", "Windows", "held_until", "next_edge", "parse_window"]


class Windows:
    """Holds a queue during its `pause` windows, and tightens its limits during its `windows`.

    A queue's `overrun` decides about a job that would run into a pause: it finishes; it is stopped when the pause starts,
    without spending an attempt; or it does not start when it usually takes longer than is left.
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
            return Hold("window", f"paused at all times: its windows cover the whole week ({texts} {queue.timezone})")
        texts = ", ".join(str(window) for window in windows if open_until(window, zone, now))
        return Hold("window", f"paused {texts} {queue.timezone}", until)

    @hookimpl
    def queue_limits(self, details: QueueLimitsDetails) -> Limits | None:
        queue = details.queue
        zone = parse_zone(queue.timezone) if queue.windows else UTC
        rules = [rule for rule in queue.windows if open_until(parse_window(rule.at), zone, details.now)]
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
    """Return the time left before a pause and when it ends, None when a job that takes `usual_s` ends before it."""
    windows, zone = _pause(queue)
    edge = next_edge(windows, zone, now)
    if edge is None or usual_s <= (edge - now).total_seconds():
        return None
    until = held_until(windows, zone, edge)
    return (edge - now).total_seconds(), None if until == FOREVER else until


def _too_late(queue: QueueSettings, view: View) -> Hold | None:
    """Hold a queue without a GPU shortly before its pause: its jobs are not checked one by one, so the longest kind counts."""
    longest_s = max((found.value for (kind, key), found in view.estimates.items() if _is_of(kind, key, queue)), default=None)
    found = None if longest_s is None else _runs_into(queue, longest_s, view.now)
    if found is None:
        return None
    left_s, until = found
    return Hold("window_near", _near(longest_s or 0.0, left_s), until)


def _is_of(kind: str, key: str, queue: QueueSettings) -> bool:
    return kind == RUN and key.startswith(f"{queue.name} ")


def _near(usual_s: float, left_s: float) -> str:
    return f"usually runs for {format_duration(usual_s)}, but a pause starts in {format_duration(left_s)}; it must wait"
