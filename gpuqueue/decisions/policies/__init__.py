"""Owns the default policies, one in a file, each a plugin that can be replaced or blocked by its name."""

from __future__ import annotations

WORKER_POLICY_NAMES = ("devices", "ollama", "residents")  # known without loading them


def default_policies() -> dict[str, object]:
    """Return the policies that every process decides with: {name: plugin}, those asked first coming last."""
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
        "device_health": DeviceHealth(),
        "yielding": Yielding(),
        "windows": Windows(),
    }


def worker_policies() -> dict[str, object]:
    """Return the plugins that only a worker needs, because they speak to devices and backends: {name: plugin}."""
    from gpuqueue.decisions.policies.residents import Residents
    from gpuqueue.devices.nvml import Devices
    from gpuqueue.executors.ollama import OllamaVerbs

    return {"devices": Devices(), "ollama": OllamaVerbs(), "residents": Residents()}
