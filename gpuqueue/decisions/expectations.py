"""Estimates when a job will start and finish, from the usual times of jobs like it and those ahead of it.

Nothing is guessed: a time that depends on an unknown one is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.estimates import LOAD, get, left_s, model_key, run_s
from gpuqueue.domain.explanation import Expectation, QueueContext, RunningJob
from gpuqueue.domain.job import Job, State
from gpuqueue.domain.model_health import settings_of
from gpuqueue.domain.models import full_name
from gpuqueue.domain.view import QueueView, Reservation, View

Holds = Mapping[str, Sequence[Hold]]


def expect(job: Job, view: View, reasons: Sequence[Hold], holds: Holds, context: QueueContext) -> Expectation | None:
    """Return a job's expected times, None when it has finished. `reasons` are why it waits, `holds` those of every queue."""
    if job.state is State.RUNNING:
        rest_s = _rest_s(job, view)
        return Expectation(None, job.started_at, _later(view.now, rest_s))
    if job.finished_at is not None:
        return None
    position = context.ahead_count(job.queue) + 1 if job.state is State.AVAILABLE else None
    ahead = [work for work in context.ahead if work.queue == job.queue or not _lasts(holds.get(work.queue, ()))]
    start_at = _start(job, view, reasons, context._replace(ahead=tuple(ahead)))
    own_s = _own_s(job, view)
    return Expectation(position, start_at, None if start_at is None else _later(start_at, own_s))


def _start(job: Job, view: View, reasons: Sequence[Hold], context: QueueContext) -> datetime | None:
    earliest = view.now
    for hold in reasons:
        if hold.ends_with_jobs:
            continue
        if hold.until is None:
            return None
        earliest = max(earliest, hold.until)
    queue = view.queues[job.queue]
    before_s = [_all_s(work.count, run_s(view.estimates, work.queue, work.task, work.model)) for work in context.ahead]
    loads_s = [_load_s(model, view) for model in {full_name(work.model) for work in context.ahead if work.model}]
    if queue.settings.gpu:
        places = sum(device.settings.slots for device in view.devices.values()) or 1
        rests_s = _device_rests_s(job, view)
    else:
        places = queue.settings.concurrency or len(context.busy) or max(1, queue.running_count)
        running = context.busy or context.running
        rests_s = _plain_rests_s(queue, running, view) if context.busy or queue.running_count >= places or context.ahead else []
    needed_s = [*before_s, *loads_s, *rests_s]
    if any(seconds is None for seconds in needed_s):
        return None
    worked_off = view.now + timedelta(seconds=sum(seconds or 0.0 for seconds in needed_s) / places)
    return max(earliest, worked_off)


def _lasts(holds: Sequence[Hold]) -> bool:
    return not all(hold.ends_with_jobs for hold in holds)


def _own_s(job: Job, view: View) -> float | None:
    model = job.expected_model if view.queues[job.queue].settings.gpu else ""  # elsewhere it is an ordinary argument
    usual_s = run_s(view.estimates, job.queue, job.task, model)
    return None if usual_s is None else usual_s + (_load_s(model, view) or 0.0)


def _rest_s(job: Job, view: View) -> float | None:
    """Return how much longer a running job is expected to take."""
    for device in view.devices.values():
        for item in device.reservations:
            if item.job_id == job.id and item.running:
                return left_s(view.estimates, item, view.now)
    if job.model:
        return None
    return _left_of(job.queue, job.task, job.started_at, view)


def _device_rests_s(job: Job, view: View) -> Iterable[float | None]:
    free = any(len(device.reservations) < device.settings.slots for device in view.devices.values())
    if free:
        return []
    running = [item for device in view.devices.values() for item in device.reservations if item.running]
    return [0.0 if _makes_room(item, job, view) else left_s(view.estimates, item, view.now) for item in running]


def _makes_room(item: Reservation, job: Job, view: View) -> bool:
    if item.preempt_requested:
        return True
    settings = view.queues[item.queue].settings if item.queue in view.queues else None
    return settings is not None and item.preemptible and settings.yield_mode == "preempt" and job.queue in settings.yields_to


def _plain_rests_s(queue: QueueView, running: Sequence[RunningJob], view: View) -> list[float | None]:
    return [_left_of(item.queue or queue.settings.name, item.task, item.started_at, view) for item in running]


def _left_of(queue: str, task: str, started_at: datetime | None, view: View) -> float | None:
    usual_s = run_s(view.estimates, queue, task, "")
    if usual_s is None or started_at is None:
        return None
    rest_s = usual_s - (view.now - started_at).total_seconds()
    return rest_s if rest_s > 0 else None


def _load_s(model: str, view: View) -> float | None:
    """Return how long a job waits for its model to load: 0 when it is loaded."""
    loaded = {full_name(item.model) for device in view.devices.values() for item in device.residents}
    if not model or full_name(model) in loaded:
        return 0.0
    settings = settings_of(model, view)
    return get(view.estimates, LOAD, model_key(model, settings.options if settings else None))


def _all_s(count: int, each_s: float | None) -> float | None:
    return None if each_s is None else count * each_s


def _later(moment: datetime, seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else moment + timedelta(seconds=seconds)
    except OverflowError:  # a job of the far future ends when no calendar says
        return None
