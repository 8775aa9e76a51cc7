"""Chooses the running attempts to preempt for a job that comes first; stops none itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, WaitingJob, hookimpl
from gpuqueue.domain.answers import Preemption
from gpuqueue.domain.estimates import left_s
from gpuqueue.domain.model_health import parallel
from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import Share, lack
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import format_duration
from gpuqueue.domain.view import RESTARTED_IN, DeviceView, Reservation, View
from gpuqueue.domain.yielding import yielded_to

THROWN_S = 360.0  # of work in an hour, which preemptions may throw away on one device
# Where starting again for jobs of other models took more than this in the last minutes, an attempt first writes for some time.
MOST_RESTARTED_S, WRITES_FIRST_S = 40.0, 13.0
STARTS_WITHIN_S = 180.0  # an attempt that was preempted before; later its server seems to hang
LOOK_AGAIN_S = 0.1  # at an attempt that has no output yet, or should have ended


class Weighed(NamedTuple):
    """When a running attempt may be preempted for a waiting job, None for not at all, and why, in words that follow its name."""

    at: datetime | None
    why: str


class Preempting:
    """Preempts running jobs of a queue with `yield_mode` "preempt" for jobs of the queues that it yields to.

    Not preempted: an attempt that is nearly done; one that continues an earlier one, before it has written for as long as it took
    to start, or for WRITES_FIRST_S where changes of models took much of the time lately; and one whose work would start again,
    once preemptions threw away THROWN_S of work in an hour.
    """

    @hookimpl
    def choose_preemptions(self, details: ChoosePreemptionsDetails) -> Sequence[Preemption]:
        chosen: dict[tuple[int, int], Preemption] = {}
        for waiting in details.waiting:
            for device in waiting.devices:
                found = _make_room(waiting, details.view.devices[device], details.view)
                if found is not None:
                    chosen.update({(item.job_id, item.lease): item for item in found})
                    break
        return list(chosen.values())


def _make_room(waiting: WaitingJob, device: DeviceView, view: View) -> list[Preemption] | None:
    """Find the attempts that must end for the job to fit on the device; None when that is not possible."""
    running = [item for item in device.reservations if item.running]
    if any(not item.running and not item.unloaded for item in device.reservations):
        return []  # a clean-up is about to release memory anyway
    victims: list[Preemption] = []
    left = list(device.reservations)
    for item in sorted(running, key=lambda item: item.started_at or view.now, reverse=True):
        if _fits(waiting, device, left, view):
            break
        moment = weigh(item, waiting, device, view).at
        if moment is None:
            continue
        left.remove(item)
        if not item.continues:
            device = replace(device, thrown=(*device.thrown, (view.now, _ran_s(item, view))))
        if not item.preempt_requested:
            victims.append(Preemption(item.job_id, item.lease, waiting.job.id, moment if moment > view.now else None))
    return victims if _fits(waiting, device, left, view) else None


def _fits(waiting: WaitingJob, device: DeviceView, left: Sequence[Reservation], view: View) -> bool:
    share = Share(waiting.job.task, waiting.demand.model, waiting.demand.vram_bytes)
    return lack(device.settings, share, left, parallel=parallel(share.model, device, view)) is None


def weigh(item: Reservation, waiting: WaitingJob, device: DeviceView, view: View) -> Weighed:
    """Compare what a job costs by waiting for a running attempt with what stopping the attempt costs, both in seconds."""
    settings = view.queues[item.queue].settings if item.queue in view.queues else QueueSettings(item.queue)
    if waiting.job.queue not in yielded_to(settings, view):
        return Weighed(None, f"queue {item.queue} does not yield to {waiting.job.queue}")
    if settings.yield_mode != "preempt":
        return Weighed(None, f"queue {item.queue} lets its jobs end (yield_mode)")
    if not item.preemptible:
        return Weighed(None, f"{item.task} cannot be preempted")
    if settings.max_preemptions is not None and item.preemptions >= settings.max_preemptions:
        return Weighed(None, f"it was preempted {item.preemptions} times already (max_preemptions)")
    rest_s = left_s(view.estimates, item, view.now)
    if rest_s is not None and rest_s <= settings.nearly_done_s:
        soon = view.now + timedelta(seconds=max(rest_s, LOOK_AGAIN_S))  # expected, not certain: it is looked at again then
        return Weighed(soon, f"it ends in about {_seconds(rest_s)}: stopping it would not pay (nearly_done)")
    ends = "may go on for an unknown time" if rest_s is None else f"needs about {_seconds(rest_s)} more"
    began, ran_s = item.started_at or view.now, _ran_s(item, view)
    if not item.continues:
        thrown_s = device.thrown_s(view.now)
        if thrown_s + ran_s > THROWN_S:
            return _protected(waiting, settings, thrown_s, ran_s, ends)
        earliest = (item.first_output_at or began) + timedelta(seconds=settings.min_run_s)
        return Weighed(earliest, f"it {ends}, and stopping it throws away {_seconds(ran_s)} of work")
    if item.first_output_at is None:
        if item.preemptions and ran_s < STARTS_WITHIN_S:
            again = view.now + timedelta(seconds=LOOK_AGAIN_S)
            return Weighed(again, f"it {ends}, and goes on first where it was stopped before")
        return Weighed(view.now, f"it {ends}, and has written nothing yet")
    cost_s = (item.first_output_at - began).total_seconds()
    # For a job with its own model, or another that is loaded too, it only reads its prompt again; else models are loaded twice.
    loaded = {full_name(item.model), *(full_name(resident.model) for resident in device.residents)}
    is_other = full_name(waiting.demand.model) not in loaded
    least_s = max(settings.min_run_s, (cost_s if is_other else cost_s / 2) if item.preemptions else 0.0)
    why = f"it {ends}, and stopping it costs about {_seconds(cost_s)}, as it is continued later"
    restarted_s = device.restarted_s(view.now)
    if is_other and restarted_s > MOST_RESTARTED_S and least_s < WRITES_FIRST_S:
        least_s = WRITES_FIRST_S
        why += (
            f"; it writes for {_seconds(least_s)} first, because such starts took {_seconds(restarted_s)} of the last "
            f"{format_duration(RESTARTED_IN.total_seconds())}"
        )
    return Weighed(item.first_output_at + timedelta(seconds=least_s), why)


def _protected(waiting: WaitingJob, settings: QueueSettings, thrown_s: float, ran_s: float, ends: str) -> Weighed:
    why = (
        f"it {ends}, and is protected: it would start again, which throws away {_seconds(ran_s)} of work; in the last hour "
        f"that was {_seconds(thrown_s)}, and at most {_seconds(THROWN_S)} may be"
    )
    if settings.protect_s is None:
        return Weighed(None, why)
    until = waiting.job.scheduled_at + timedelta(seconds=settings.protect_s)
    return Weighed(until, f"{why}, but no job waits longer than {format_duration(settings.protect_s)} for it (protect)")


def _ran_s(item: Reservation, view: View) -> float:
    return (view.now - (item.started_at or view.now)).total_seconds()


def _seconds(duration_s: float) -> str:
    return format_duration(round(duration_s, 1) if duration_s < 10 else round(duration_s))
