"""Runs a worker in a test until no job can start any more, and explains why the remaining jobs wait; changes no clock."""

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
from gpuqueue.testing.waiting import DEADLINE_S
from gpuqueue.worker import Worker

__all__ = ["JobsStuck", "run_until_idle"]

TOLD_AT_MOST = 20
LISTED_AT_MOST = 1000


class JobsStuck(AssertionError):
    """Jobs remain that cannot start, or do not end; `explanations` says why: {job id: Explanation}."""

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
    timeout_s: float = DEADLINE_S,
) -> dict[int, Explanation]:
    """Run a worker of this queue object in this thread until no job can start any more.

    A job cannot start if it waits for a later time or for a hold to end, or if this worker does not serve its queue.
    Returns: why each remaining job waits, {job id: Explanation}; always empty without `may_wait`.
    Raises: JobsStuck with the explanation of each job that still waits (without `may_wait`), or still runs after `timeout_s`.
    """
    served = None if queues is None else tuple(queues)
    ends_s = time.monotonic() + timeout_s
    idle_runs = 0
    seen: list[Job] | None = None
    while True:
        _run(Worker(gq, queues=served, threads=threads, burst=True), gq, served, timeout_s=max(0.0, ends_s - time.monotonic()))
        jobs, left = _explained(gq, served, WAITING)
        idle_runs = idle_runs + 1 if jobs == seen else 0
        seen = jobs
        # Jobs that became due, or were released, while the worker was stopping.
        if any(not explanation.reasons for explanation in left.values()) and idle_runs < 2:
            continue
        if left and not may_wait:
            raise JobsStuck(jobs, left, f"{_count(left)} unable to start:")
        return left


def _run(worker: Worker, gq: GPUQueue, served: tuple[str, ...] | None, *, timeout_s: float) -> None:
    """Run a worker to its end, or stop it after `timeout_s`. Raises: JobsStuck if it was stopped."""
    stuck: list[JobsStuck] = []

    def stop() -> None:
        jobs, found = _explained(gq, served, (State.RUNNING,))
        what = f"the worker was stopped after {timeout_s:.3g} s; {_count(found)} still running:"
        stuck.append(JobsStuck(jobs, found, what))
        worker.request_stop()
        worker.request_stop()  # without waiting for running jobs

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
    """Explain the jobs in these states as if the worker, which may have stopped already, still served its queues."""
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
