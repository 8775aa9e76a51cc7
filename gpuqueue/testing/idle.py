"""Owns running a worker in a test until nothing can start any more, and telling why what is left does not; changes no clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from gpuqueue.client.queue import GPUQueue
from gpuqueue.decisions.evaluation import explain
from gpuqueue.decisions.view import queue_context
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.job import WAITING, Job, State
from gpuqueue.domain.view import View
from gpuqueue.worker import Worker

__all__ = ["JobsStuck", "run_until_idle"]

TOLD_AT_MOST = 20
LISTED_AT_MOST = 1000


class JobsStuck(AssertionError):
    """Jobs are left that cannot start, or that do not end; `explanations` says why: {job id: Explanation}."""

    def __init__(self, jobs: Iterable[Job], explanations: Mapping[int, Explanation], what: str) -> None:
        told = [f"{job.task} in {job.queue}, {job.state}: {explanations[job.id]}" for job in jobs]
        more = [f"… and {len(told) - TOLD_AT_MOST} more"] if len(told) > TOLD_AT_MOST else []
        super().__init__("\n".join([what, *told[:TOLD_AT_MOST], *more]))
        self.explanations = dict(explanations)


def run_until_idle(
    gq: GPUQueue,
    *,
    queues: Iterable[str] | None = None,
    threads: int | None = None,
    may_wait: bool = False,
    timeout_s: float = 30.0,
) -> dict[int, Explanation]:
    """Run a worker of this queue object in this thread until no job can start any more.

    A job that waits for a later time, for a hold to end, or for a queue that this worker does not serve, cannot.
    Returns: why each job that is left waits, {job id: Explanation}; with `may_wait`, else there is none.
    Raises: JobsStuck with the explanation of each job that is left waiting, or that still runs after `timeout_s`.
    """
    served = None if queues is None else tuple(queues)
    ends_s = time.monotonic() + timeout_s
    runs_in_vain = 0
    seen: list[Job] | None = None
    while True:
        _run(Worker(gq, queues=served, threads=threads, burst=True), gq, served, timeout_s=max(0.0, ends_s - time.monotonic()))
        jobs, left = _explained(gq, served, WAITING)
        runs_in_vain = runs_in_vain + 1 if jobs == seen else 0
        seen = jobs
        # What came due, or was let go, when the worker was about to leave.
        if any(not explanation.reasons for explanation in left.values()) and runs_in_vain < 2:
            continue
        if left and not may_wait:
            raise JobsStuck(jobs, left, f"{_count(left)} left that cannot start:")
        return left


def _run(worker: Worker, gq: GPUQueue, served: tuple[str, ...] | None, *, timeout_s: float) -> None:
    """Run a worker to its end, or stop it after `timeout_s`. Raises: JobsStuck when it was stopped."""
    stuck: list[JobsStuck] = []

    def stop() -> None:
        jobs, found = _explained(gq, served, (State.RUNNING,))
        what = f"the worker was stopped after {timeout_s:.3g} s, and {_count(found)} still running:"
        stuck.append(JobsStuck(jobs, found, what))
        worker.request_stop()
        worker.request_stop()  # without patience for what runs

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        worker.run()
    finally:
        timer.cancel()
        timer.join()
    if stuck:
        raise stuck[0]


def _explained(gq: GPUQueue, served: tuple[str, ...] | None, states: Iterable[State]) -> tuple[list[Job], dict[int, Explanation]]:
    """Explain the jobs in these states as if the worker, which may have left already, still served its queues."""
    view = _as_served(gq.view(), served)
    jobs = [found.record for state in states for found in gq.jobs(state=state, limit=LISTED_AT_MOST)]
    explanations = {}
    for job in jobs:
        with gq.store.snapshot() as reads:
            context = queue_context(reads, job, view)
        command = f"run_until_idle(…, queues=[{job.queue!r}])"
        explanations[job.id] = explain(job, view, gq.plugins, context, worker_command=command)
    return jobs, explanations


def _as_served(view: View, served: tuple[str, ...] | None) -> View:
    queues = {name: replace(queue, served=served is None or name in served) for name, queue in view.queues.items()}
    return replace(view, queues=queues)


def _count(found: Mapping[int, Explanation]) -> str:
    return f"{len(found)} job{' is' if len(found) == 1 else 's are'}"
