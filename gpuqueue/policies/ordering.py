"""Owns the order in which waiting jobs are tried for a device; drops and places none."""

from __future__ import annotations

from collections.abc import Sequence

from gpuqueue.domain import Job
from gpuqueue.hookspecs import OrderCandidatesDetails, hookimpl


class Ordering:
    """Priority descending, then scheduled_at, then id, over all queues."""

    @hookimpl
    def order_candidates(self, details: OrderCandidatesDetails) -> Sequence[Job]:
        return sorted(details.candidates, key=lambda job: (-job.priority, job.scheduled_at, job.id))
