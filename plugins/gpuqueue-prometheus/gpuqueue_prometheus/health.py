"""Judges the queue's health, including problems that only show over time; repairs nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpuqueue import GPUQueue, GPUQueueError
from gpuqueue.plugins import State
from gpuqueue_prometheus.findings import Problem, Status, backends_wrong, devices_wrong, queues_wrong, services_wrong

STUCK_S = 60.0
LOOK_EVERY_S = 5.0
NAMED_AT_MOST = 20


class Health:
    """Observes the queue regularly and reports its health on request; safe to use from several threads.

    `write` writes something into the database and raises if that fails; `clock` is in seconds.
    """

    def __init__(self, gq: GPUQueue, write: Callable[[], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._gq = gq
        self._write = write
        self._clock = clock
        self._look_at_s = float("-inf")
        # Queues that could start a job and do not: {queue: (first seen, job, lease)}.
        self._idle: dict[str, tuple[float, int, int]] = {}

    def look(self) -> None:
        """Note the queues that do not start a job although they could; call it often. Raises: StoreError."""
        if self._clock() < self._look_at_s:
            return
        self._look_at_s = self._clock() + LOOK_EVERY_S
        now_s = self._clock()
        idle = {}
        for queue, job_id, lease in self._startable():
            before = self._idle.get(queue)
            since_s = before[0] if before is not None and before[1:] == (job_id, lease) else now_s
            idle[queue] = (since_s, job_id, lease)
        self._idle = idle

    def report(self) -> tuple[Status, list[Problem]]:
        """Return the problems, and the status of the worst one."""
        problems = list(self._problems())
        found = {problem.status for problem in problems}
        return next((status for status in reversed(Status) if status in found), Status.OK), problems

    def _problems(self) -> Iterator[Problem]:
        try:
            self._write()
        except GPUQueueError as error:
            yield Problem(Status.UNHEALTHY, "database", f"cannot be written: {error}")
        try:
            view, counts, holds = self._gq.view(), self._gq.counts(), self._gq.holds()
            services = self._gq.services()
        except GPUQueueError as error:
            yield Problem(Status.UNHEALTHY, "database", f"cannot be read: {error}")
            return
        if not view.workers:
            yield Problem(Status.UNHEALTHY, "workers", "no worker is running")
        for worker in view.workers:
            if worker.troubles:
                cannot = f"it cannot do its work: {'; '.join(worker.troubles)}"
                yield Problem(Status.UNHEALTHY, f"worker {worker.id}", cannot)
        yield from queues_wrong(view, counts, holds)
        yield from self._stuck()
        yield from devices_wrong(view, holds)
        yield from backends_wrong(view, holds)
        yield from services_wrong(services)

    def _stuck(self) -> Iterator[Problem]:
        for queue, (since_s, job_id, _) in sorted(self._idle.items()):
            for_s = self._clock() - since_s
            if for_s >= STUCK_S:
                waits = (
                    f"job {job_id} has been ready to start for {for_s:.0f} s, but an idle worker that serves it does not start it"
                )
                yield Problem(Status.UNHEALTHY, f"queue {queue}", waits)

    def _startable(self) -> Iterator[tuple[str, int, int]]:
        """Find queues whose first job has no reason to wait while a worker is idle: (queue, job, lease)."""
        view, holds = self._gq.view(), self._gq.holds()
        waiting = [name for name, queue in view.queues.items() if queue.waiting_count and queue.served and not holds.get(name)]
        if not waiting:
            return
        with self._gq.read() as reader:
            running = {entry.id for name in view.queues for entry in reader.entries(name, State.RUNNING)}
            busy = {record.job.worker_id for record in reader.records(running).values()}
        for name in waiting:
            # A worker that runs something may have no capacity for more, which no explanation shows.
            if all(worker.id in busy for worker in view.workers if worker.queues is None or name in worker.queues):
                continue
            with self._gq.read() as reader:
                first = next(iter(reader.entries(name, State.AVAILABLE, limit=1)), None)
                record = None if first is None else reader.records([first.id]).get(first.id)
            if record is not None and not self._gq.explain(record.job.id).reasons:
                yield name, record.job.id, record.job.lease


def as_json(status: Status, problems: Sequence[Problem]) -> dict[str, Any]:
    """Format a report for /healthz."""
    told = [{"status": item.status, "subject": item.subject, "detail": item.detail} for item in problems[:NAMED_AT_MOST]]
    return {"status": status, "problems": told, "problem_count": len(problems)}
