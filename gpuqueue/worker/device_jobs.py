"""Runs jobs on devices, each in a thread until its device is cleaned up; chooses and claims nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial
from queue import SimpleQueue

from gpuqueue.contract.current_job import publish_waits
from gpuqueue.domain.job import Lease
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.view import PartInfo
from gpuqueue.store.job_threads import Waits
from gpuqueue.store.liveness import Liveness
from gpuqueue.worker.attempt import Pipeline
from gpuqueue.worker.on_device import OnDevice
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import ServiceThread, part_info
from gpuqueue.worker.site import Site


def threads_for(devices: Iterable[DeviceSettings]) -> int:
    """Return how many threads serve the devices: while one waits for memory to come back, the next job of its slot may run."""
    return 2 * sum(device.slots for device in devices)


class DeviceJobs:
    """The threads for the jobs of all devices; the first one uses slot `first_slot` of the liveness file."""

    def __init__(
        self,
        site: Site,
        pipeline: Pipeline,
        on_device: OnDevice,
        liveness: Liveness,
        waits: Waits,
        orders: Orders,
        *,
        first_slot: int,
    ) -> None:
        self._store = site.store
        self._clock = site.clock
        self._pipeline = pipeline
        self._on_device = on_device
        self._liveness = liveness
        self._waits = waits
        self._ready: SimpleQueue[Lease | None] = SimpleQueue()
        self._busy_count = 0
        self._lock = threading.Lock()
        self._last_s = site.clock.monotonic()
        self._threads = [
            ServiceThread(f"device-{slot}", partial(self._work, first_slot + slot), site.clock, orders)
            for slot in range(threads_for(site.settings.devices))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, lease: Lease) -> None:
        """Hand over a claimed job."""
        with self._lock:
            self._busy_count += 1
        self._ready.put(lease)

    def refuse(self, lease: Lease, error: BaseException) -> None:
        """End the attempt of a claimed job that could not be handed over."""
        self._pipeline.broken(lease, error, self._on_device.kind)

    @property
    def is_idle(self) -> bool:
        return self._busy_count == 0

    def stop(self, *, wait_s: float) -> None:
        """End the threads; one that is stuck in a given-up job is left running after `wait_s`."""
        self._on_device.stopping.set()
        for _ in self._threads:
            self._ready.put(None)
        give_up_s = self._clock.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_s - self._clock.monotonic()))

    def info(self) -> PartInfo:
        """Describe the threads as one part."""
        alive = all(thread.is_alive for thread in self._threads)
        return part_info("device", self._clock, alive=alive, since_s=None, last_s=self._last_s)

    def _work(self, slot: int) -> None:
        publish_waits(partial(self._waits.publish, slot))
        while (lease := self._ready.get()) is not None:
            try:
                self._pipeline.carry_out(lease, self._on_device.kind, slot)
            except BaseException as error:
                self._pipeline.broken(lease, error, self._on_device.kind)
            finally:
                with self._lock:
                    self._busy_count -= 1
                self._last_s = self._clock.monotonic()
                self._liveness.executes(slot, 0)
                self._store.wakeups.ring_workers()
