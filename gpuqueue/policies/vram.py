"""Owns what a job needs of a device and where it fits, from configured sizes; loads and unloads nothing."""

from __future__ import annotations

from gpuqueue.domain import Demand, DeviceView, Placement, Wait
from gpuqueue.hookspecs import JobDemandDetails, PlaceJobDetails, hookimpl
from gpuqueue.models import VERBS, full_name
from gpuqueue.units import format_size


class VRAM:
    """Takes a model's configured size; a job whose size nobody configured takes the largest budget, so it runs alone."""

    @hookimpl
    def job_demand(self, details: JobDemandDetails) -> Demand | None:
        whole_bytes = max((device.settings.budget_bytes for device in details.view.devices.values()), default=0)
        if details.job.task not in VERBS:
            return Demand(whole_bytes)
        model = str(details.job.arguments.get("model", ""))
        known = next((item for item in details.view.models.values() if full_name(item.name) == full_name(model)), None)
        return Demand(known.vram_bytes if known else whole_bytes, model)

    @hookimpl
    def place_job(self, details: PlaceJobDetails) -> Placement | Wait | None:
        waits = []
        for device in details.view.devices.values():
            wait = _wait(device, details.demand)
            if wait is None:
                return Placement(device.settings.name, details.demand.vram_bytes)
            waits.append(wait)
        if not waits:
            return Wait("no_device", f"queue {details.queue.name!r} has gpu = true, but no [gpu] is configured")
        return next((wait for wait in waits if wait.reason != "never_fits"), waits[0])


def _wait(device: DeviceView, demand: Demand) -> Wait | None:
    settings = device.settings
    if demand.vram_bytes > settings.budget_bytes:
        needs = f"needs {format_size(demand.vram_bytes)}, the budget of {settings.name} is {format_size(settings.budget_bytes)}"
        return Wait("never_fits", f"{needs}; raise [gpu] budget or use a smaller model")
    running = [item for item in device.reservations if item.running]
    cleaning = [item for item in device.reservations if not item.running]
    if len(device.reservations) >= settings.slots:
        if running:
            jobs = ", ".join(f"job {item.job_id} of {item.queue}" for item in running)
            return Wait("device_busy", f"{settings.name} runs {jobs}")
        jobs = ", ".join(f"job {item.job_id}" for item in cleaning)
        return Wait("clean_up", f"{settings.name} gets back the memory of {jobs}")
    models = {item.model for item in device.reservations if item.model} - {demand.model}
    if demand.model and len(models) + 1 > settings.max_models:
        return Wait("max_models", f"{settings.name} runs {', '.join(sorted(models))} and may hold {settings.max_models} model(s)")
    free_bytes = settings.budget_bytes - device.reserved_bytes
    if demand.vram_bytes > free_bytes:
        return Wait(
            "vram", f"needs {format_size(demand.vram_bytes)}, {format_size(free_bytes)} of the budget of {settings.name} are free"
        )
    return None
