"""Estimates when a job will start and finish, from the usual times of jobs like it and those ahead of it.

Nothing is guessed: a time that depends on an unknown one is None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from statistics import mean
from typing import NamedTuple

from gpuqueue.decisions.playing import Line, done_before
from gpuqueue.domain.answers import Hold, Preemption
from gpuqueue.domain.estimates import (
    GAP,
    LOAD,
    ONE_SAYS,
    RELEASE,
    RUN,
    TURN,
    Length,
    alike,
    left_s,
    length,
    model_key,
    total,
    work_key,
)
from gpuqueue.domain.explanation import WHOLE, Expectation, QueueContext, Work
from gpuqueue.domain.job import Job, State
from gpuqueue.domain.model_health import settings_of
from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import used_slots
from gpuqueue.domain.view import Reservation, View
from gpuqueue.domain.yielding import yielded_to

Holds = Mapping[str, Sequence[Hold]]
Stops = Callable[[], Sequence[Preemption]]

DEVIATIONS = 1.1  # from the middle of a range to its ends: eight of ten values lie within
NOW = Length(0.0)


def expect(
    job: Job, view: View, reasons: Sequence[Hold], holds: Holds, context: QueueContext, stops: Stops = tuple
) -> Expectation | None:
    """Return a job's expected times, None when it has finished.

    `reasons` are why it waits, `holds` those of every queue, `stops` finds the running attempts that are stopped for it.
    """
    if job.state is State.RUNNING:
        rest = _times(view.now, _rest(job, view))
        return Expectation(None, job.started_at, rest.middle, job.started_at, job.started_at, *rest[1:])
    if job.finished_at is not None:
        return None
    is_available = job.state is State.AVAILABLE
    position = 1 + sum(work.count for work in context.ahead if work.queue == job.queue) if is_available else None
    due_s = _until_s(reasons, view.now)
    opens_s = due_s and _until_s(holds.get(job.queue, ()), view.now)
    if due_s is None or opens_s is None:
        return Expectation(position, None, None)
    # While its queue is held, those of the others are worked off.
    ahead = [work for work in context.ahead if work.queue == job.queue or not (opens_s or _lasts(holds.get(work.queue, ())))]
    wait = _wait(job, view, context._replace(ahead=tuple(ahead)), stops, opens_s)
    if wait is None:
        return Expectation(position, None, None)
    own = _own(job, view)
    start = _times(view.now, wait, due_s)
    finish = _times(view.now, None if own is None else max(wait, Length(due_s)) + own)
    return Expectation(position, start.middle, finish.middle, *start[1:], *finish[1:])


def _until_s(holds: Sequence[Hold], now: datetime) -> float | None:
    """Return how long holds last that do not end with other jobs, 0 without one; None if nobody knows."""
    lasting = [hold for hold in holds if not hold.ends_with_jobs]
    ends = [hold.until for hold in lasting if hold.until is not None]
    return None if len(ends) < len(lasting) else max(((moment - now).total_seconds() for moment in ends), default=0.0)


class _Times(NamedTuple):
    middle: datetime | None
    earliest: datetime | None
    latest: datetime | None


def _times(now: datetime, after: Length | None, not_before_s: float = 0.0) -> _Times:
    """Return the moments so long after now, each at least `not_before_s` after it."""
    if after is None:
        return _Times(None, None, None)
    from_s, to_s = (max(seconds, not_before_s) for seconds in after.range_s(DEVIATIONS))
    from_s = 0.0 if from_s < WHOLE.total_seconds() / 2 else from_s
    middle_s = max(after.mean_s, not_before_s)
    return _Times(*(_later(now, seconds) for seconds in (middle_s, from_s, max(to_s, from_s + WHOLE.total_seconds()))))


def _wait(job: Job, view: View, context: QueueContext, stops: Stops, opens_s: float) -> Length | None:
    """Return how long it waits for its queue to open, the jobs ahead of it and the running ones."""
    queue = view.queues[job.queue]
    if queue.settings.gpu:
        before = [_turns(work, view, count) for work, count in (_played(job, view, context.ahead) if context.ahead else ())]
        rests = [] if opens_s else _device_rests(job, view, stops)
    else:
        places = queue.settings.concurrency or len(context.busy) or max(1, queue.running_count)
        before = [length(view.estimates, RUN, work_key(work.queue, work.task, ""), work.count) for work in context.ahead]
        running = context.busy or context.running
        if (context.busy or queue.running_count >= places or context.ahead) and not opens_s:
            before += [_left_of(item.queue or job.queue, item.task, item.started_at, view) for item in running]
        rests, before = [], [found and found.scaled(1 / places) for found in before]
    known = [found for found in (*before, *rests) if found is not None]
    return total([Length(opens_s), *known]) if len(known) == len(before) + len(rests) else None


def _played(job: Job, view: View, ahead: Sequence[Work]) -> list[tuple[Work, float]]:
    """Return how many jobs of each kind are done before a job starts: those ahead of it, as loaded models change the order."""
    plainly = [(work, _left_of_all(work, view)) for work in ahead]
    model, first = full_name(job.expected_model), yielded_to(view.queues[job.queue].settings, view)
    lines: dict[str, Line] = {}
    for work in ahead:
        if work.queue not in first:
            turn = _turns(work, view)
            if turn is None:
                return plainly
            line = lines.setdefault(full_name(work.model), Line(0, 0, turn.mean_s))
            line.ahead, line.behind = line.ahead + work.count, line.behind + work.behind
    affinity_s = max((device.settings.affinity_s for device in view.devices.values()), default=0.0)
    if affinity_s == 0 or lines.keys() <= {model}:
        return plainly
    models = {item.model for device in view.devices.values() for item in device.residents}
    models |= {item.model for device in view.devices.values() for item in device.reservations}
    done = done_before(
        model,
        {model: Line(0, 0, 0.0), **lines},
        loaded=frozenset(full_name(name) for name in models),
        affinity_s=affinity_s,
        every_s=_comers(first, view),
    )
    return [(work, count + (0 if work.queue in first else _sooner(work, lines, done))) for work, count in plainly]


def _left_of_all(work: Work, view: View) -> float:
    """Return how many jobs' work is left of a kind; of one that is continued, half."""
    settings = settings_of(work.model, view)
    return work.count - (work.begun / 2 if settings is not None and settings.resume == "continue" else 0)


def _sooner(work: Work, lines: Mapping[str, Line], done: Mapping[str, float]) -> float:
    """Return how many more jobs of a kind are done than came before the job, by their share in their model's; maybe below 0."""
    name = full_name(work.model)
    ahead = lines[name].ahead
    return (done[name] - ahead) * (work.count / ahead if ahead else float(work.behind > 0))


def _comers(queues: set[str], view: View) -> dict[str, float]:
    """Return how often jobs of these queues need each model."""
    every_s: dict[str, float] = {}
    for (kind, key), found in view.estimates.items():
        queue, _, rest = key.partition(" ")
        if kind == GAP and queue in queues:
            gap_s = max(found.value, view.now.timestamp() - found.at_us / 1e6)
            model = rest.partition(" ")[2]
            every_s[model] = min(gap_s, every_s.get(model, gap_s))
    return every_s


def _turns(work: Work, view: View, count: float = 1) -> Length | None:
    """Return how long such jobs take in turn on the devices; of a kind that is new to a queue, as long as its other ones."""
    key = work_key(work.queue, work.task, work.model)
    turn = length(view.estimates, TURN, key, count)
    if turn is not None or not count:
        return turn or NOW
    run = length(view.estimates, RUN, key, count)
    load = None if run is None else _load(work.model, view)
    if run is not None and load is not None:
        places = sum(device.settings.slots for device in view.devices.values()) or 1
        return (run + load).scaled(1 / places)
    others = [found.value for (kind, of), found in view.estimates.items() if kind == TURN and of.startswith(f"{work.queue} ")]
    return alike(Length(mean(others), (ONE_SAYS * mean(others)) ** 2), count) if others else None


def _lasts(holds: Sequence[Hold]) -> bool:
    return not all(hold.ends_with_jobs for hold in holds)


def _own(job: Job, view: View) -> Length | None:
    is_gpu = view.queues[job.queue].settings.gpu
    model = job.expected_model if is_gpu else ""  # elsewhere it is an ordinary argument
    key = work_key(job.queue, job.task, model)
    turn = length(view.estimates, TURN, key) if is_gpu else None
    run, load = length(view.estimates, RUN, key), _load(model, view)
    return turn or (None if run is None else run + (load or NOW))


def _rest(job: Job, view: View) -> Length | None:
    """Return how much longer a running job is expected to take."""
    for device in view.devices.values():
        for item in device.reservations:
            if item.job_id == job.id and item.running:
                return _left(item, view)
    if job.model:
        return None
    return _left_of(job.queue, job.task, job.started_at, view)


def _left(item: Reservation, view: View) -> Length | None:
    if not item.model:
        return _left_of(item.queue, item.task, item.started_at, view)
    rest_s = left_s(view.estimates, item, view.now)
    if rest_s is None:
        return None
    usual = length(view.estimates, RUN, work_key(item.queue, item.task, item.model))
    return Length(rest_s, usual.variance if usual is not None else 0.0)


def _device_rests(job: Job, view: View, stops: Stops) -> list[Length | None]:
    """Return how long the attempts on the devices hold up a job: until those end that are stopped for it, else until one does."""
    if any(used_slots(device.reservations) < device.settings.slots for device in view.devices.values()):
        return []
    there = [item for device in view.devices.values() for item in device.reservations]
    chosen = stops() if any(item.running and item.preemptible for item in there) else ()
    stopping = {(item.job_id, item.lease): item.not_before or view.now for item in chosen}
    ending = []
    for item in there:
        moment = view.now if item.preempt_requested or not item.running else stopping.get((item.job_id, item.lease))
        if moment is not None:
            ending.append(Length((moment - view.now).total_seconds()) + _release(item, job, view))
    if ending:
        return [max(ending)]
    rests = (_rest_before(item, job, view) for item in there)
    return [rest and rest.scaled(1 / len(there)) for rest in rests]


def _release(item: Reservation, job: Job, view: View) -> Length:
    if full_name(item.model) == full_name(job.expected_model):
        return NOW
    return length(view.estimates, RELEASE, model_key(item.model)) or NOW


def _rest_before(item: Reservation, job: Job, view: View) -> Length | None:
    """Return how long a running attempt holds up a job; one that others may interrupt as much longer as it usually takes."""
    rest = _left(item, view)
    if rest is None:  # it has taken longer than usual, or it is not known how far it is
        whole = _turns(Work(item.queue, item.task, item.model, 1), view)
        return whole and Length(ONE_SAYS * whole.mean_s, (ONE_SAYS * whole.mean_s) ** 2)
    settings = view.queues[item.queue].settings if item.queue in view.queues else None
    if settings is None or not settings.yields_to or job.queue in yielded_to(settings, view):
        return rest
    key = work_key(item.queue, item.task, item.model)
    run, turn = length(view.estimates, RUN, key), length(view.estimates, TURN, key)
    return rest.scaled(max(1.0, turn.mean_s / run.mean_s)) if turn is not None and run is not None and run.mean_s else rest


def _left_of(queue: str, task: str, started_at: datetime | None, view: View) -> Length | None:
    usual = length(view.estimates, RUN, work_key(queue, task, ""))
    if usual is None or started_at is None:
        return None
    rest_s = usual.mean_s - (view.now - started_at).total_seconds()
    return Length(rest_s, usual.variance) if rest_s > 0 else None


def _load(model: str, view: View) -> Length | None:
    """Return how long a job waits for its model to load: 0 when it is loaded."""
    loaded = {full_name(item.model) for device in view.devices.values() for item in device.residents}
    if not model or full_name(model) in loaded:
        return NOW
    settings = settings_of(model, view)
    return length(view.estimates, LOAD, model_key(model, settings.options if settings else None))


def _later(moment: datetime, seconds: float | None) -> datetime | None:
    try:
        return None if seconds is None else moment + timedelta(seconds=seconds)
    except OverflowError:  # a job of the far future ends when no calendar says
        return None
