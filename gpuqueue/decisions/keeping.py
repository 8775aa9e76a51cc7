"""Says which loaded models stay for other jobs, and which must go for one; unloads none."""

from __future__ import annotations

from collections.abc import Sequence

from gpuqueue.contract.hookspecs import CleanUpAttemptDetails, PrepareAttemptDetails
from gpuqueue.domain.device import Resident
from gpuqueue.domain.memory import vram_of
from gpuqueue.domain.models import full_name
from gpuqueue.domain.units import format_duration


def kept(details: CleanUpAttemptDetails) -> str | None:
    """Return why a job's model stays loaded when no job uses it, None if it does not."""
    lease, stay_s = details.lease, warm_s(details)
    if stay_s and details.device.keep_warm_s != "auto":
        return f" for {format_duration(stay_s)} (keep_warm)"
    if full_name(lease.model) in {full_name(model) for model in details.next_models()}:
        return ": a waiting job needs it too"
    next_s = details.next_use_s() if stay_s else None
    if next_s is None or next_s > stay_s:
        return None
    expected = format_duration(next_s)
    return f" for at most {format_duration(stay_s)}: the next job for it is expected in about {expected} (keep_warm)"


def warm_s(details: CleanUpAttemptDetails) -> float:
    """Return how long Ollama keeps a job's model for one that is only expected."""
    keep_warm_s, placement = details.device.keep_warm_s, details.lease.placement
    if keep_warm_s == "auto":
        return 0.0 if placement is None else placement.keep_warm_s
    return keep_warm_s


def in_the_way(details: PrepareAttemptDetails, others: Sequence[Resident], needed_bytes: int) -> list[Resident]:
    """Return the models to evict for a job, as few as possible; those that near jobs need come last."""
    device, has_model = details.device, bool(details.lease.model)
    in_use = {full_name(model) for model in details.in_use}
    left, evicted = list(others), list[Resident]()

    def too_much() -> bool:
        return len(left) + has_model > device.max_models or vram_of(left) + needed_bytes > device.budget_bytes

    idle = [item for item in others if full_name(item.model) not in in_use]
    if not idle or not too_much():
        return []
    near = [full_name(model) for model in details.next_models()]

    def turn(item: Resident) -> int:
        name = full_name(item.model)
        return near.index(name) if name in near else len(near)

    for item in sorted(idle, key=turn, reverse=True):
        if too_much():
            left.remove(item)
            evicted.append(item)
    return evicted
