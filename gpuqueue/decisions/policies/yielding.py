"""Holds a queue while a queue that it yields to has work; work that cannot start does not count."""

from __future__ import annotations

from gpuqueue.contract.hookspecs import QueueHoldDetails, hookimpl
from gpuqueue.domain.answers import Hold


class Yielding:
    """Holds a queue while a queue in its `yields_to` has running jobs, or jobs that wait only for the device."""

    @hookimpl
    def queue_hold(self, details: QueueHoldDetails) -> Hold | None:
        busy = []
        for name in details.queue.yields_to:
            other = details.view.queues.get(name)
            if other is None:
                continue
            startable = other.waiting_count if other.served and not details.holds.get(name) else 0
            if other.running_count or startable:
                many = "+" if startable >= 100 else ""
                busy.append(f"{name} comes first ({other.running_count} running, {startable}{many} waiting)")
        return Hold("yielding", "; ".join(busy), ends_with_jobs=True) if busy else None
