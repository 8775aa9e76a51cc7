"""Holds the objects that all parts of one worker share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpuqueue.config.shared import SharedSettings
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.devices.cached import CachedDevice
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.store.store import Store
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.log import WorkerLog


@dataclass(frozen=True, slots=True)
class Site:
    """What the parts of a worker share: its id, store, plugins, settings, clock and log."""

    worker_id: str
    store: Store
    plugins: Plugins
    settings: SharedSettings  # as agreed by the workers
    clock: Clock
    log: WorkerLog
    devices: Mapping[str, CachedDevice] = field(default_factory=dict)  # by name
    queues: tuple[str, ...] | None = None  # those that the worker serves; None is all

    def serves(self, queue: str) -> bool:
        """Say whether the worker runs this queue's jobs."""
        return self.queues is None or queue in self.queues

    def queue(self, name: str) -> QueueSettings:
        """Return a queue's settings."""
        return self.settings.queues.get(name) or QueueSettings(name)
