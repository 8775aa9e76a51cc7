"""Answers a client's questions about the whole queue: the view, the holds, explanations and expected times.

Loaded on first use: a process that only enqueues does not need the policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from gpuqueue.config.shared import SharedSettings, agreed
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.circles import circle
from gpuqueue.decisions.evaluation import explain, known_holds, limited
from gpuqueue.decisions.policies import in_force
from gpuqueue.decisions.view import build, largest_budget, live_workers, queue_context, serves
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.explanation import Expectation, Explanation
from gpuqueue.domain.units import to_us
from gpuqueue.domain.view import View, WorkerInfo
from gpuqueue.store.store import Store


def see(store: Store, own: SharedSettings, plugins: Plugins, now: datetime) -> View:
    """Read the snapshot that decisions are made from; `own` are the settings to use before the workers agree on any."""
    with store.snapshot() as reads:
        view = build(reads, in_force(agreed(reads.configuration(), own)), now)
    return limited(view, plugins)


def holds_of(view: View, plugins: Plugins) -> Mapping[str, Sequence[Hold]]:
    """Return each queue's holds."""
    return known_holds(view, plugins)


def explain_job(
    store: Store, job_id: int, own: SharedSettings, plugins: Plugins, *, now: datetime, worker_command: str
) -> Explanation:
    """Explain a job's state. Raises: UnknownJob."""
    with store.snapshot() as reads:
        job = reads.job(job_id)
        view = build(reads, in_force(agreed(reads.configuration(), own)), now)
        context = queue_context(reads, job, view)
    return explain(job, limited(view, plugins), plugins, context, worker_command=worker_command)


def circle_of(
    store: Store, waiter_id: int, awaited_id: int, own: SharedSettings, *, needs_thread: Callable[[str], bool], now: datetime
) -> str | None:
    """Return why a task must not wait for a job, None if it may."""
    with store.snapshot() as reads:
        view = build(reads, in_force(agreed(reads.configuration(), own)), now)
        return circle(reads, view, waiter_id, awaited_id, needs_thread=needs_thread, now_us=to_us(now))


def expectations(store: Store, own: SharedSettings, plugins: Plugins, now: datetime) -> dict[str, Expectation]:
    """Return the expected times of each queue's last waiting job; queues without an estimate are left out."""
    with store.snapshot() as reads:
        settings = in_force(agreed(reads.configuration(), own))
        view = build(reads, settings, now)
        lasts = [reads.last_waiting(name, largest_bytes=largest_budget(settings)) for name in view.queues]
        found = [(job, queue_context(reads, job, view)) for job in lasts if job is not None]
    view = limited(view, plugins)
    expectations = {}
    for job, context in found:
        expected = explain(job, view, plugins, context, worker_command="").expected
        if expected is not None and expected.finish_at is not None:
            expectations[job.queue] = expected
    return expectations


def workers(store: Store, *, now_us: int) -> list[WorkerInfo]:
    """List the live workers."""
    with store.reading() as reads:
        return live_workers(reads, now_us=now_us)


def is_served(queue: str, found: Sequence[WorkerInfo]) -> bool:
    """Say whether one of the workers serves the queue."""
    return any(serves(worker, queue) for worker in found)
