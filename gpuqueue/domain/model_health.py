"""Determines whether a queue's jobs can use a model: installed, fits a device, or spilled; contacts no backend."""

from __future__ import annotations

from typing import Literal, NamedTuple

from gpuqueue.domain.endpoints import of_queue
from gpuqueue.domain.estimates import ONE_AT_ONCE, SHOWN, SPILLED, VRAM, get, memory_options, model_key
from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import parallel_on
from gpuqueue.domain.settings import ModelSettings, QueueSettings
from gpuqueue.domain.units import format_size
from gpuqueue.domain.view import DeviceView, View

SPILL_BYTES = 64 * 2**20  # less than this outside the device slows nothing down noticeably

State = Literal["unknown", "missing", "too_large", "spills", "fits"]


class ModelHealth(NamedTuple):
    """The state of a model, and the sentence that describes it; a model that is `missing` or `too_large` cannot run."""

    state: State
    detail: str
    needed_bytes: int | None

    @property
    def is_usable(self) -> bool:
        return self.state not in ("missing", "too_large")


def health(model: str, queue: QueueSettings, view: View) -> ModelHealth:
    """Return a model's state for the jobs of a queue."""
    endpoints = of_queue(queue.backend, view.backends.values())
    needed_bytes = known_bytes(model, view)
    listed = [item.models for item in endpoints]
    if listed and all(models is not None and full_name(model) not in {full_name(name) for name in models} for models in listed):
        names = ", ".join(item.name for item in endpoints)
        return ModelHealth(
            "missing", f"{model} is not installed on {names}; install it there with: ollama pull {model}", needed_bytes
        )
    largest_bytes = max((device.settings.budget_bytes for device in view.devices.values()), default=None)
    if needed_bytes is None:
        return ModelHealth("unknown", f"the size of {model} is not known yet", None)
    needs = f"{model} needs {format_size(needed_bytes)}"
    if largest_bytes is not None and needed_bytes > largest_bytes:
        return ModelHealth("too_large", f"{needs}; the largest budget is {format_size(largest_bytes)}", needed_bytes)
    settings = settings_of(model, view)
    spilled_bytes = get(view.estimates, SPILLED, model_key(model, settings.options if settings else None)) or 0
    if spilled_bytes > SPILL_BYTES:
        return ModelHealth("spills", f"{needs}; {format_size(int(spilled_bytes))} of it recently ran on the CPU", needed_bytes)
    return ModelHealth("fits", needs, needed_bytes)


def known_bytes(model: str, view: View) -> int | None:
    """Return the device memory that a model needs, None when it is not known."""
    if not model:
        return None
    settings = settings_of(model, view)
    key = memory_key(model, view)
    observed, shown = get(view.estimates, VRAM, key), get(view.estimates, SHOWN, key)
    if observed is not None:
        return int(observed)
    if settings is not None:
        return settings.vram_bytes
    return None if shown is None else int(shown)


def memory_key(model: str, view: View) -> str:
    """Return the key of a model's learned size: by its options, and by how many requests at once it is loaded for."""
    settings = settings_of(model, view)
    return model_key(model, memory_options(settings.options if settings else {}, view.backends.values()))


def parallel(model: str, device: DeviceView, view: View) -> int:
    """Return how many jobs of a model may run at once on a device."""
    if get(view.estimates, ONE_AT_ONCE, model_key(model)):
        return 1
    return parallel_on(device.settings, view.backends.values())


def settings_of(model: str, view: View) -> ModelSettings | None:
    """Return the configured settings of a model, found by any of its names; None without any."""
    return next((item for item in view.models.values() if full_name(item.name) == full_name(model)), None)
