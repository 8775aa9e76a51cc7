"""Lists the default policies; each has its own file and is a plugin that can be blocked by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from gpuqueue.config.shared import SharedSettings
from gpuqueue.domain.settings import QueueSettings

DEVICE_HEALTH = "device_health"
YIELDING = "yielding"
# The claim checks these policies again under its lock, from a queue's settings. These values replace them while it is blocked.
WITHOUT: Mapping[str, Mapping[str, Any]] = {YIELDING: {"yields_to": ()}, "rates": {"rate": None}}
WORKER_POLICY_NAMES = ("devices", "ollama", "residents")  # known without loading them


def in_force(settings: SharedSettings) -> SharedSettings:
    """Return the settings without those that only a blocked policy would use."""
    queues = {name: queue_in_force(queue, settings.plugins_blocked) for name, queue in settings.queues.items()}
    return replace(settings, queues=queues)


def queue_in_force(queue: QueueSettings, blocked: Collection[str]) -> QueueSettings:
    """Return one queue's settings without those that only a blocked policy would use."""
    for name in WITHOUT.keys() & blocked:
        queue = replace(queue, **WITHOUT[name])
    return queue


def default_policies() -> dict[str, object]:
    """Return the policies that every process decides with: {name: plugin}, the first one called last."""
    from gpuqueue.decisions.policies.availability import Availability
    from gpuqueue.decisions.policies.device_health import DeviceHealth
    from gpuqueue.decisions.policies.ordering import Ordering
    from gpuqueue.decisions.policies.preemption import Preempting
    from gpuqueue.decisions.policies.rates import Rates
    from gpuqueue.decisions.policies.retention import Retention
    from gpuqueue.decisions.policies.retries import Retries
    from gpuqueue.decisions.policies.spills import Spills
    from gpuqueue.decisions.policies.vram import Memory
    from gpuqueue.decisions.policies.windows import Windows
    from gpuqueue.decisions.policies.yielding import Yielding

    return {
        "retention": Retention(),
        "ordering": Ordering(),
        "retries": Retries(),
        "vram": Memory(),
        "spills": Spills(),
        "preemption": Preempting(),
        "rates": Rates(),
        "availability": Availability(),
        DEVICE_HEALTH: DeviceHealth(),
        YIELDING: Yielding(),
        "windows": Windows(),
    }


def worker_policies() -> dict[str, object]:
    """Return the plugins that only a worker needs, because they use devices and backends: {name: plugin}."""
    from gpuqueue.decisions.policies.residents import Residents
    from gpuqueue.devices.nvml import Devices
    from gpuqueue.executors.ollama import OllamaVerbs

    return {"devices": Devices(), "ollama": OllamaVerbs(), "residents": Residents()}
