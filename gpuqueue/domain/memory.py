"""Says which devices can take a demand now, from reservations, free memory and backends; places nothing."""

from __future__ import annotations

from collections.abc import Sequence

from gpuqueue.domain.answers import Wait
from gpuqueue.domain.device import Resident
from gpuqueue.domain.endpoints import away, of_queue, on_device
from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import taken_bytes
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import DeviceView, View

FRESH_S = 10.0  # an older reading says nothing about what is free now


def whole_budget(view: View) -> int:
    """Return the largest budget of any device in bytes, 0 without a device: the demand of a job that must run alone."""
    return max((device.settings.budget_bytes for device in view.devices.values()), default=0)


def devices_for(wanted: str | None, model: str, queue: QueueSettings, view: View) -> list[DeviceView]:
    """Return the devices that a job may run on, even if full now, in the order to try them.

    `wanted` is the requested device's name or label. A device with the model loaded comes first.
    """
    endpoints = of_queue(queue.backend, view.backends.values())
    found = [
        device
        for device in view.devices.values()
        if (wanted is None or wanted in names_of(device))
        and (not model or not endpoints or on_device(queue.backend, device.settings.name, endpoints) is not None)
    ]
    sign = -1 if view.placement == "pack" else 1

    def order(device: DeviceView) -> tuple[bool, int]:
        loaded = {full_name(item.model) for item in device.residents}
        return not model or full_name(model) not in loaded, sign * device.reserved_bytes

    return sorted(found, key=order)


def may_have(device: DeviceView, model: str, queue: QueueSettings, view: View) -> bool:
    """Say whether only other jobs can keep this one off a device: it can be read, and its Ollama is available."""
    is_lost = device.reading is not None and device.reading.lost is not None
    return not is_lost and backend_away(device, model, queue, view) is None


def available(device: DeviceView, model: str) -> int | None:
    """Return the memory available to a job for a model on a device, from its last reading; None when that is unknown.

    Counts memory held by unused models as available, and subtracts what other jobs have reserved but not taken yet. Negative
    when less is free than they have reserved.
    """
    if device.reading is None or device.reading.free_bytes is None:
        return None
    # Of an unloaded model, what is not back yet is not free either.
    held = [item for item in device.reservations if not item.unloaded]
    in_use = {full_name(item.model) for item in held if item.model}
    evictable = [item for item in device.residents if full_name(item.model) not in {*in_use, full_name(model)}]
    seen_bytes = vram_of([item for item in device.residents if full_name(item.model) in in_use])
    return device.reading.free_bytes + vram_of(evictable) - max(0, taken_bytes(held) - seen_bytes)


def backend_away(device: DeviceView, model: str, queue: QueueSettings, view: View) -> Wait | None:
    """Return a wait when this device's Ollama is unavailable while another one of the queue is available."""
    backends = of_queue(queue.backend, view.backends.values()) if model else []
    backend = on_device(queue.backend, device.settings.name, backends)
    if backend is None or backend.available or not any(item.available for item in backends):
        return None  # its queue is held while all are unavailable
    return Wait("unavailable", away(backend, view))


def names_of(device: DeviceView) -> tuple[str, ...]:
    return (device.settings.name, *device.settings.labels)


def vram_of(residents: Sequence[Resident]) -> int:
    return sum(item.vram_bytes for item in residents)
