"""Owns what a client learns of the queue as a whole: the view, the holds, why a job is where it is and what to expect.

Loaded when it is first asked for: a process that only enqueues has no use for policies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from gpuqueue.config.shared import SharedSettings
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.evaluation import explain, known_holds, limited
from gpuqueue.decisions.view import largest_budget, live_workers, read_view, serves, surroundings
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.view import View, WorkerInfo
from gpuqueue.store import Store


def see(store: Store, settings: SharedSettings, plugins: Plugins, now: datetime) -> View:
    """Read the snapshot that decisions are made from."""
    return limited(read_view(store, settings, now), plugins)


def holds_of(view: View, plugins: Plugins) -> Mapping[str, Sequence[Hold]]:
    """Return what holds each queue."""
    return known_holds(view, plugins)


def explain_job(store: Store, job_id: int, view: View, plugins: Plugins, *, worker_command: str) -> Explanation:
    """Say why a job is where it is. Raises: UnknownJob."""
    with store.snapshot() as reads:
        job = reads.job(job_id)
        beside = surroundings(reads, job, view)
    return explain(job, view, plugins, beside, worker_command=worker_command)


def expected_ends(store: Store, settings: SharedSettings, view: View, plugins: Plugins) -> dict[str, datetime]:
    """Say when what waits in each queue is expected to be done; those not known are left out."""
    ends = {}
    with store.snapshot() as reads:
        for name in view.queues:
            last = reads.last_waiting(name, largest_bytes=largest_budget(settings))
            if last is not None:
                expected = explain(last, view, plugins, surroundings(reads, last, view), worker_command="").expected
                if expected is not None and expected.finish_at is not None:
                    ends[name] = expected.finish_at
    return ends


def workers(store: Store, *, now_us: int) -> list[WorkerInfo]:
    """List the workers that live."""
    with store.snapshot() as reads:
        return live_workers(reads, now_us=now_us)


def is_served(queue: str, found: Sequence[WorkerInfo]) -> bool:
    """Say whether one of the workers serves the queue."""
    return any(serves(worker, queue) for worker in found)
