"""Finds the tasks that wait for jobs which cannot end before them; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpuqueue.contract.reads import Reads
from gpuqueue.decisions.view import serves, worker_threads
from gpuqueue.domain.errors import UnknownJob
from gpuqueue.domain.explanation import JobThreads
from gpuqueue.domain.job import FINISHED, Job, State
from gpuqueue.domain.memory import devices_for
from gpuqueue.domain.room import used_slots
from gpuqueue.domain.units import counted
from gpuqueue.domain.view import View


class Need(NamedTuple):
    """A condition for a job to go on: one of these jobs must end first; `lack` says in words what the job lacks until then."""

    jobs: frozenset[int]
    lack: str


def circle(
    reads: Reads, view: View, waiter_id: int, awaited_id: int, *, needs_thread: Callable[[str], bool], now_us: int
) -> str | None:
    """Return why a task must not wait for a job, None if it may.

    Of the tasks that wait in vain, the one of the newest job is told, so that the others can go on. `needs_thread` returns
    whether a task certainly runs in a thread.
    """
    threads = worker_threads(reads, now_us=now_us)
    waits = {waiter_id: awaited_id}
    for known in threads.values():
        if known is not None:
            waits.update({item.job_id: item.waits_for for item in (*known.pool, *known.devices) if item.waits_for})
    needs: dict[int, list[Need]] = {}
    for job_id in waits.values():
        if job_id not in waits and job_id not in needs:
            needs[job_id] = _needs(job_id, reads, view, threads, needs_thread)
    for job_id, other in waits.items():
        needs[job_id] = [Need(frozenset({other}), f"it waits for job {other}")]
    stuck = cannot_end(needs)
    if waiter_id not in stuck or waiter_id != max(stuck & waits.keys()):
        return None
    lack = next((need.lack for need in needs[awaited_id] if need.jobs <= stuck), "")
    return (
        f"job {waiter_id} waits for job {awaited_id}, which cannot end before job {waiter_id} does: {lack}. "
        "Do not wait inside the task: return the id, or enqueue what comes next from the other job"
    )


def cannot_end(needs: Mapping[int, list[Need]]) -> set[int]:
    """Return the jobs that can never end, because each other one that must end before them cannot either."""
    stuck = set(needs)
    while free := {job_id for job_id in stuck if all(need.jobs - stuck for need in needs[job_id])}:
        stuck -= free
    return stuck


def _needs(
    job_id: int, reads: Reads, view: View, threads: Mapping[str, JobThreads | None], needs_thread: Callable[[str], bool]
) -> list[Need]:
    try:
        job = reads.job(job_id)
    except UnknownJob:
        return []
    if job.state in FINISHED or job.state is State.RUNNING:
        return []
    found = [_concurrency(job, reads, view)]
    if view.queues[job.queue].settings.gpu:
        found.append(_device(job, view))
    elif needs_thread(job.task):
        found.append(_thread(job, view, threads))
    return [need for need in found if need is not None]


def _thread(job: Job, view: View, threads: Mapping[str, JobThreads | None]) -> Need | None:
    serving = [threads.get(worker.id) for worker in view.workers if serves(worker, job.queue)]
    pool = [item for known in serving if known is not None for item in known.pool]
    if not pool or None in serving or not all(item.job_id for item in pool):
        return None
    return Need(frozenset(item.job_id for item in pool), f"no thread is left to run it, {_all_wait(len(pool))}")


def _all_wait(count: int) -> str:
    return "the only one waits" if count == 1 else f"all {count} run jobs that wait"


def _concurrency(job: Job, reads: Reads, view: View) -> Need | None:
    limit = view.queues[job.queue].settings.concurrency
    running = frozenset(item.id for item in reads.running_jobs(job.queue)) if limit is not None else frozenset()
    if limit is None or len(running) < limit:
        return None
    return Need(running, f"queue {job.queue!r} runs at most {counted(limit, 'job')} at once, and what it runs waits")


def _device(job: Job, view: View) -> Need | None:
    devices = devices_for(job.wanted_device, job.model, view.queues[job.queue].settings, view)
    taken = [item for device in devices for item in device.reservations]
    if not devices or any(used_slots(device.reservations) < device.settings.slots for device in devices):
        return None
    if any(item.preemptible for item in taken):  # they may be stopped for it
        return None
    names = ", ".join(device.settings.name for device in devices)
    return Need(frozenset(item.job_id for item in taken), f"{names} is taken by jobs that wait")
