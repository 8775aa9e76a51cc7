"""Says what a device's reservations take together, and what keeps one more job off it: one rule for the claim and every policy.

The jobs of one server's model share its memory: it is loaded once, for as many requests at once as the server was started for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, Protocol

from gpuqueue.domain.models import VERBS, full_name
from gpuqueue.domain.settings import DeviceSettings


class Taken(Protocol):
    """A reservation: the memory that a job has, or had while its clean-up lasts (`running` False).

    Once its model is unloaded (`unloaded`), only its memory counts, until that is back.
    """

    @property
    def task(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def reserved_bytes(self) -> int: ...
    @property
    def running(self) -> bool: ...
    @property
    def unloaded(self) -> bool: ...


class Held(Taken, Protocol):
    """A reservation that names its job."""

    @property
    def job_id(self) -> int: ...


class Share(NamedTuple):
    """The parts of a reservation that decide; also of one that a job would get."""

    task: str
    model: str
    reserved_bytes: int
    running: bool = True
    unloaded: bool = False


class Server(Protocol):
    """A backend, from its settings or its row."""

    @property
    def device(self) -> str: ...
    @property
    def num_parallel(self) -> int: ...


# What a device lacks for a job: a free slot, a place for another model, a model that is not being unloaded, a free request of
# its model, or memory.
Lack = Literal["slots", "max_models", "clean_up", "parallel", "vram"]


def shared_model(job: Taken) -> str:
    """Return the model in a server's memory that the job uses; "" for one with memory of its own, such as a function."""
    return full_name(job.model) if job.task in VERBS and not job.unloaded else ""


def used_slots(taken: Iterable[Taken]) -> int:
    """Return how many slots of a device reservations use."""
    return sum(not item.unloaded for item in taken)


def taken_bytes(taken: Iterable[Taken]) -> int:
    """Return what reservations take together: a shared model counts once, with the largest size that one of its jobs reserved.

    Each of its jobs reserves the whole size, so it counts until the last of them is cleaned up, in whatever order they end.
    """
    own_bytes = 0
    models: dict[str, int] = {}
    for item in taken:
        if model := shared_model(item):
            models[model] = max(models.get(model, 0), item.reserved_bytes)
        else:
            own_bytes += item.reserved_bytes
    return own_bytes + sum(models.values())


def room_bytes(device: DeviceSettings, taken: Collection[Taken]) -> int:
    """Return the largest size that a job may have to fit: what is left, and a model that is there already."""
    left_bytes = device.budget_bytes - taken_bytes(taken)
    if used_slots(taken) >= device.slots:
        return left_bytes
    return left_bytes + max((item.reserved_bytes for item in taken if shared_model(item)), default=0)


def lack(device: DeviceSettings, job: Taken, taken: Collection[Taken], *, parallel: int) -> Lack | None:
    """Return what keeps a job off a device beside these reservations; None when it fits.

    `parallel` is how many requests of the job's model run at once. A model that only ended attempts hold is about to be
    unloaded: no job may begin to use it meanwhile, so a clean-up never unloads a model that another job uses.
    """
    if used_slots(taken) >= device.slots:
        return "slots"
    if _models_count((job, *taken)) > device.max_models:
        return "max_models"
    model = shared_model(job)
    sharing = [item for item in taken if model and shared_model(item) == model]
    if sharing and not any(item.running for item in sharing):
        return "clean_up"
    if len(sharing) >= parallel and sharing:
        return "parallel"
    return "vram" if taken_bytes((job, *taken)) > device.budget_bytes else None


def fit(device: DeviceSettings, jobs: Collection[Taken]) -> bool:
    """Say whether the models and the memory of these jobs can be on a device together, however many run at once."""
    return _models_count(jobs) <= device.max_models and taken_bytes(jobs) <= device.budget_bytes


def _models_count(jobs: Iterable[Taken]) -> int:
    return len({full_name(item.model) for item in jobs if item.model and not item.unloaded})


def sharing_with(job_id: int, taken: Iterable[Held]) -> list[int]:
    """Return the running jobs that use the same loaded model as a job with a reservation."""
    held = list(taken)
    model = next((shared_model(item) for item in held if item.job_id == job_id), "")
    return [item.job_id for item in held if model and item.job_id != job_id and item.running and shared_model(item) == model]


def parallel_on(device: DeviceSettings, servers: Iterable[Server]) -> int:
    """Return how many jobs of one model may run at once on a device."""
    here = [server for server in servers if server.device in ("", device.name)]
    # Two servers would each load a model of the same name.
    return min([device.slots, *(server.num_parallel for server in here)]) if len(here) < 2 else 1
