"""Holds a queue while its rate limit is reached; counts no jobs itself."""

from __future__ import annotations

from datetime import timedelta

from gpuqueue.contract.hookspecs import QueueHoldDetails, hookimpl
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.rates import format_rate, next_in_s


class Rates:
    """Holds a queue at its rate limit until the next job may start."""

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        rate = details.queue.rate
        queue = details.view.queues[details.queue.name]
        level = queue.rate_level
        if rate is None or level is None or level >= 1:
            return None
        until = details.view.now + timedelta(seconds=next_in_s(rate, level))
        why = f", set by {queue.limited_by}" if queue.limited_by else ""
        return Hold("rate", f"at its rate limit of {format_rate(rate)}{why}", until)
