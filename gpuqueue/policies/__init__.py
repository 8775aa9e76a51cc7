"""Owns the default policies, one in a file, each a plugin that can be replaced or blocked by its name."""

from __future__ import annotations

WORKER_POLICY_NAMES = ("devices", "ollama", "residents")  # known without loading them


def default_policies() -> dict[str, object]:
    """Return the policies that every process decides with: {name: plugin}, those asked first coming last."""
    from gpuqueue.policies.availability import Availability
    from gpuqueue.policies.ordering import Ordering
    from gpuqueue.policies.retention import Retention
    from gpuqueue.policies.retries import Retries
    from gpuqueue.policies.vram import VRAM
    from gpuqueue.policies.windows import Windows
    from gpuqueue.policies.yielding import Yielding

    return {
        "retention": Retention(),
        "ordering": Ordering(),
        "retries": Retries(),
        "vram": VRAM(),
        "availability": Availability(),
        "yielding": Yielding(),
        "windows": Windows(),
    }


def worker_policies() -> dict[str, object]:
    """Return the plugins that only a worker needs, because they speak to devices and backends: {name: plugin}."""
    from gpuqueue.devices.nvml import Devices
    from gpuqueue.executors.ollama import OllamaVerbs
    from gpuqueue.policies.residents import Residents

    return {"devices": Devices(), "ollama": OllamaVerbs(), "residents": Residents()}
