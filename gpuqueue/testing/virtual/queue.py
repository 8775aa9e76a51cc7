"""A queue object on virtual time, whose file need not survive the test."""

from __future__ import annotations

from collections.abc import Callable

from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.loading import Config
from gpuqueue.store import open_store
from gpuqueue.store.store import Store
from gpuqueue.testing.virtual.time import VirtualTime


class VirtualQueue(GPUQueue):
    """Reads the time that it is given; `listeners` are called where other processes would be woken."""

    def __init__(self, config: Config, time: VirtualTime) -> None:
        super().__init__(config=config, discover_plugins=False)
        self.listeners: list[Callable[[], None]] = []
        self._time = time
        self.clock_ns = lambda: time.wall() * 1000

    def open_store(self, *, patient: bool = False) -> Store:
        store = open_store(self.database, synchronous="off", patient=patient, now_us=self._time.wall)
        store.wakeups.ring_workers = self._ring  # type: ignore[method-assign]
        return store

    def _ring(self) -> None:
        for listener in self.listeners:
            listener()
