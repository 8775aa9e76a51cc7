"""Moves a queue object's clock in a test; moves no other clock.

with travel(gq, "2h"):
    run_until_idle(gq)      # runs what is due in two hours
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.units import Duration, parse_duration, to_us

__all__ = ["travel"]


@contextmanager
def travel(gq: GPUQueue, to: datetime | Duration) -> Iterator[None]:
    """Inside the block, this queue object's clock is at another time, and runs on from there.

    `to` is an aware datetime, or a duration from now. All that the queue decides by time follows: delays, waits before the
    next attempt, windows, pauses, expiry, rates and how long finished jobs are kept. Whether a worker is alive does not
    depend on it. Blocks may be nested, also inside time-machine's `travel`, which moves `gq` too, and the time that tasks
    themselves read.
    Raises: UsageError if `to` is neither.
    """
    before = gq.clock_ns
    ahead_us = to_us(to) - gq.now_us() if isinstance(to, datetime) else round(parse_duration(to, what="to") * 1e6)
    gq.clock_ns = lambda: before() + ahead_us * 1000
    try:
        yield
    finally:
        gq.clock_ns = before
