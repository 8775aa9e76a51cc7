"""Sizes jobs and places them on devices; loads and unloads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpuqueue.contract.hookspecs import JobDemandDetails, PlaceJobDetails, hookimpl
from gpuqueue.domain.answers import Demand, Placement, Wait
from gpuqueue.domain.estimates import worth_keeping_s
from gpuqueue.domain.memory import FRESH_S, available, backend_away, devices_for, names_of, vram_of, whole_budget
from gpuqueue.domain.model_health import health, known_bytes, parallel, settings_of
from gpuqueue.domain.models import VERBS, full_name
from gpuqueue.domain.room import Lack, Share, lack, taken_bytes
from gpuqueue.domain.units import counted, format_duration, format_size
from gpuqueue.domain.view import DeviceView, Reservation, View


class Memory:
    """Sizes jobs and places them.

    A job's size is, in this order: its own `vram`, its model's measured size, the configured size, an estimate from the
    model's description. When none is known it is the largest budget, so the job runs alone. A model that is missing or fits
    no device is replaced by the first usable one of the job's `fallback`.
    """

    @hookimpl
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        job, view = details.job, details.view
        model = str(job.arguments.get("model", "")) if job.task in VERBS else ""
        if model and not health(model, details.queue, view).is_usable:
            others = [other for other in job.fallback or details.queue.fallback if health(other, details.queue, view).is_usable]
            model = next(iter(others), model)
        size = job.wanted_bytes or known_bytes(model, view) or whole_budget(view)
        return Demand(size, model)

    @hookimpl
    def place_job(self, details: PlaceJobDetails) -> Placement | Wait | None:
        view, queue, demand = details.view, details.queue, details.demand
        devices = devices_for(details.job.wanted_device, demand.model, queue, view)
        if not devices:
            return _no_device(details)
        # A device that can never fit the job is not reported where another one can.
        devices = [item for item in devices if demand.vram_bytes <= item.settings.budget_bytes] or devices[:1]
        waits = []
        for device in devices:
            wait = backend_away(device, demand.model, queue, view) or _wait(device, details.job.task, demand, view)
            if wait is None:
                return Placement(device.settings.name, demand.vram_bytes, _keep_warm_s(device, demand.model, view))
            waits.append(wait)
        return replace(waits[0], detail="; ".join(dict.fromkeys(wait.detail for wait in waits)))


def _keep_warm_s(device: DeviceView, model: str, view: View) -> float:
    if device.settings.keep_warm_s != "auto" or not model:
        return 0.0
    settings = settings_of(model, view)
    return worth_keeping_s(view.estimates, model, settings.options if settings else None)


def _no_device(details: PlaceJobDetails) -> Wait:
    view, wanted = details.view, details.job.wanted_device
    if not view.devices:
        return Wait("no_device", f"queue {details.queue.name!r} has gpu = true, but no [gpu] is configured")
    if wanted is None or any(wanted in names_of(device) for device in view.devices.values()):
        tied = ", ".join(f"{item.name} runs on {item.device}" for item in view.backends.values())
        return Wait("no_device", f"no Ollama of queue {details.queue.name!r} runs on {wanted or 'a device'}; {tied}")
    names = ", ".join(sorted({name for device in view.devices.values() for name in names_of(device)}))
    return Wait("no_device", f"unknown device {wanted!r}. Devices: {names}")


def _wait(device: DeviceView, task: str, demand: Demand, view: View) -> Wait | None:
    """Return why the job cannot start on this device now; None when it can."""
    settings = device.settings
    if demand.vram_bytes > settings.budget_bytes:
        needs = f"needs {format_size(demand.vram_bytes)}; {settings.name}'s budget is {format_size(settings.budget_bytes)}"
        return Wait("never_fits", f"{needs}. Raise [gpu] budget or use a smaller model")
    if device.reading is not None and device.reading.lost is not None:
        return Wait("device_lost", f"{settings.name} cannot be read: {device.reading.lost}")
    share = Share(task, demand.model, demand.vram_bytes)
    at_once = parallel(demand.model, device, view)
    found = lack(settings, share, device.reservations, parallel=at_once)
    return _wait_for_others(device, share, view) if found is None else _wait_for_jobs(found, device, share, at_once)


def _wait_for_jobs(found: Lack, device: DeviceView, share: Share, at_once: int) -> Wait:
    """Say what a device lacks for a job until others end."""
    settings, there = device.settings, device.reservations
    running = [item for item in there if item.running]
    kept = [item for item in there if not item.unloaded]
    same = [item for item in kept if full_name(item.model) == full_name(share.model)]
    if found == "slots" and running:
        return Wait("device_busy", f"{settings.name} is running {_jobs(running)}", ends_with_jobs=True)
    if found in ("slots", "clean_up"):
        jobs = " and ".join(f"job {item.job_id}'s" for item in (kept if found == "slots" else same))
        return Wait("clean_up", f"waiting for {jobs} memory on {settings.name} to be released", ends_with_jobs=True)
    if found == "max_models":
        models = ", ".join(sorted({item.model for item in kept if item.model and item not in same}))
        at_most = counted(settings.max_models, "model")
        return Wait("max_models", f"{settings.name} is running {models} and holds at most {at_most}", ends_with_jobs=True)
    if found == "parallel":
        at_most = f"{share.model} runs at most {counted(at_once, 'job')} at once"
        return Wait("parallel", f"{at_most}; {settings.name} is running {_jobs(same)}", ends_with_jobs=True)
    left_bytes = settings.budget_bytes - device.reserved_bytes
    return Wait(
        "vram",
        f"needs {format_size(share.reserved_bytes)}; {format_size(left_bytes)} of {settings.name}'s budget is free",
        ends_with_jobs=True,
    )


def _jobs(items: Sequence[Reservation]) -> str:
    asked = {True: ", which is being preempted", False: ""}
    return ", ".join(f"job {item.job_id} ({item.queue}){asked[item.preempt_requested]}" for item in items)


def _wait_for_others(device: DeviceView, share: Share, view: View) -> Wait | None:
    """Return a wait when other programs hold memory that the job needs, whatever the budget allows."""
    reading = device.reading
    available_bytes = available(device, share.model)
    more_bytes = taken_bytes((share, *device.reservations)) - device.reserved_bytes
    if not more_bytes or reading is None or available_bytes is None or reading.age_s(view.now) > FRESH_S:
        return None
    idle = {full_name(share.model)} - {full_name(item.model) for item in device.reservations}
    mine = [item for item in device.residents if full_name(item.model) in idle]
    needed_bytes = max(0, more_bytes - vram_of(mine)) + device.settings.min_free_bytes
    if available_bytes >= needed_bytes:
        return None
    return Wait(
        "memory_taken",
        f"needs {format_size(needed_bytes)} including the reserve; {device.settings.name} has "
        f"{format_size(max(0, available_bytes))} free (read {format_duration(reading.age_s(view.now))} ago). {_others(device)}",
    )


def _others(device: DeviceView) -> str:
    reading = device.reading
    assert reading is not None and reading.free_bytes is not None
    held = [item for item in reading.processes or () if item.used_bytes]
    if held:
        largest = sorted(held, key=lambda item: -(item.used_bytes or 0))[:3]
        return "Largest users: " + ", ".join(
            f"{item.name or 'a program'} (pid {item.pid}, {format_size(item.used_bytes or 0)})" for item in largest
        )
    taken_bytes = (reading.total_bytes or 0) - reading.free_bytes - vram_of(device.residents)
    return f"Other programs hold {format_size(max(0, taken_bytes))}"
