"""Finds problems in a view of the queue, and rates each of them.

Unhealthy: needs a person or a restart, because waiting jobs will not start by themselves. Degraded: gpuqueue handles it for now,
as configured. A queue that is paused, or held by a window or by another queue, is not a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpuqueue.plugins import Hold, ServiceInfo, State, View

AWAY_S = 300.0  # a backend may restart; after this time a person should check it


class Status(StrEnum):
    """The verdict, best first."""

    OK = "ok"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `subject` names the part that has it, such as "queue ai-batch"."""

    status: Status
    subject: str
    detail: str


def queues_wrong(view: View, counts: Mapping[str, Mapping[str, int]], holds: Mapping[str, Sequence[Hold]]) -> Iterator[Problem]:
    """Find queues with waiting jobs that no worker serves, and queues held by a plugin's failure."""
    for name, queue in view.queues.items():
        waiting = counts.get(name, {}).get(State.AVAILABLE, 0)
        if waiting and not queue.served:
            many = f"{waiting} job is waiting" if waiting == 1 else f"{waiting} jobs are waiting"
            yield Problem(Status.UNHEALTHY, f"queue {name}", f"no worker serves it, and {many}")
        for hold in holds.get(name, ()):
            if hold.source == "failure":
                yield Problem(Status.UNHEALTHY, f"queue {name}", hold.detail)


def devices_wrong(view: View, holds: Mapping[str, Sequence[Hold]]) -> Iterator[Problem]:
    """Find devices that cannot be read."""
    status = Status.UNHEALTHY if _is_held_by(holds, "device_health") else Status.DEGRADED
    for name, device in view.devices.items():
        if device.reading is not None and device.reading.lost is not None:
            yield Problem(status, f"device {name}", f"cannot be read: {device.reading.lost}")


def backends_wrong(view: View, holds: Mapping[str, Sequence[Hold]]) -> Iterator[Problem]:
    """Find unavailable backends: degraded at first, unhealthy when it lasts and holds a queue."""
    for backend in view.backends.values():
        if backend.available:
            continue
        away_s = 0.0 if backend.since is None else (view.now - backend.since).total_seconds()
        is_long = away_s >= AWAY_S and _is_held_by(holds, "availability")
        detail = f"unavailable for {away_s:.0f} s: {backend.error}"
        yield Problem(Status.UNHEALTHY if is_long else Status.DEGRADED, f"backend {backend.name}", detail)


def services_wrong(services: Iterable[ServiceInfo]) -> Iterator[Problem]:
    """Find services that a worker runs and that report an error."""
    for service in services:
        if service.worker_id is not None and service.status.get("error"):
            yield Problem(Status.DEGRADED, f"service {service.name}", str(service.status["error"]))


def _is_held_by(holds: Mapping[str, Sequence[Hold]], policy: str) -> bool:
    return any(hold.plugin == policy for found in holds.values() for hold in found)
