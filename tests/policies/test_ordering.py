"""The order in which waiting jobs are tried for a device."""

from __future__ import annotations

from datetime import timedelta

from gpuqueue.hookspecs import OrderCandidatesDetails
from gpuqueue.policies.ordering import Ordering
from gpuqueue.testing.views import NOW, job, view


def test_priority_comes_first_then_the_due_time_then_the_id_over_all_queues():
    later = NOW + timedelta(seconds=1)
    candidates = (
        job(5),
        job(4, scheduled_at=later),
        job(3, queue="ai-realtime"),
        job(2, priority=1, scheduled_at=later),
        job(1, priority=-1),
    )
    ordered = Ordering().order_candidates(OrderCandidatesDetails(candidates, view()))
    assert [item.id for item in ordered] == [2, 3, 5, 4, 1]
