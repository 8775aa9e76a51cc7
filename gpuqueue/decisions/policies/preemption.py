"""Chooses the running attempts to preempt for a job that comes first; stops none itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gpuqueue.contract.hookspecs import ChoosePreemptionsDetails, WaitingJob, hookimpl
from gpuqueue.domain.answers import Preemption
from gpuqueue.domain.estimates import left_s
from gpuqueue.domain.model_health import parallel
from gpuqueue.domain.room import Share, lack
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import DeviceView, Reservation, View
from gpuqueue.domain.yielding import yielded_to


class Preempting:
    """Preempts running jobs of a queue with `yield_mode` "preempt" for jobs of the queues that it yields to.

    Not preempted: an attempt that has just started, one that is nearly done, and a job preempted `max_preemptions` times.
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
    queue = waiting.job.queue
    running = [item for item in device.reservations if item.running]
    if len(running) < len(device.reservations):
        return []  # a clean-up is about to release memory anyway
    victims: list[Preemption] = []
    left = list(device.reservations)
    for item in sorted(running, key=lambda item: item.started_at or view.now, reverse=True):
        if _fits(waiting, device, left, view):
            break
        moment = _may_end_at(item, queue, view)
        if moment is None:
            continue
        left.remove(item)
        if not item.preempt_requested:
            victims.append(Preemption(item.job_id, item.lease, waiting.job.id, moment if moment > view.now else None))
    return victims if _fits(waiting, device, left, view) else None


def _fits(waiting: WaitingJob, device: DeviceView, left: Sequence[Reservation], view: View) -> bool:
    share = Share(waiting.job.task, waiting.demand.model, waiting.demand.vram_bytes)
    return lack(device.settings, share, left, parallel=parallel(share.model, device, view)) is None


def _may_end_at(item: Reservation, queue: str, view: View) -> datetime | None:
    """Return when this attempt may be preempted for that queue; None when it may not."""
    settings = view.queues[item.queue].settings if item.queue in view.queues else QueueSettings(item.queue)
    if settings.yield_mode != "preempt" or not item.preemptible or queue not in yielded_to(settings, view):
        return None
    if item.preemptions >= settings.max_preemptions:
        return None
    rest_s = left_s(view.estimates, item, view.now)
    if rest_s is not None and rest_s <= settings.nearly_done_s:
        return None
    return (item.started_at or view.now) + timedelta(seconds=settings.min_run_s)
