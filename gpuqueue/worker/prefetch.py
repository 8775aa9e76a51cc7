"""Reads the next model's file into the page cache while the card is busy, so that its load does not wait for the disk.

Off where memory is short: the file must fit beside what Ollama's runners may need for their prompt caches.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpuqueue.devices import host_memory
from gpuqueue.devices.remote import runs_here
from gpuqueue.domain.endpoints import standing_on
from gpuqueue.domain.errors import GPUQueueError
from gpuqueue.domain.models import full_name
from gpuqueue.domain.settings import BackendSettings, DeviceSettings
from gpuqueue.domain.view import DeviceView, Reservation, View
from gpuqueue.executors.ollama_client import OllamaClient
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.page_cache import give_way, is_supported, read_ahead
from gpuqueue.worker.service_thread import ServiceThread
from gpuqueue.worker.site import Site

EVERY_S = 1.0
ROUND_S = 1.0  # then it asks again what comes next
QUERY_S = 1.0
STOP_S = 5.0
logger = logging.getLogger("gpuqueue.worker")
Wanted = tuple[int, int, str]  # the job that computes, its lease, and the model that comes next


class Prefetch:
    """Reads in its own thread, and only while a job of this worker computes on the device: its own load has the disk alone.

    `view` returns the dispatcher's last view, `next_models` the models of the next jobs for a device once a job has ended.
    """

    def __init__(
        self, site: Site, orders: Orders, *, view: Callable[[], View | None], next_models: Callable[[str, int], Sequence[str]]
    ) -> None:
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._view = view
        self._next_models = next_models
        self._devices = site.settings.devices
        self._backends = prefetching(self._devices, site.settings.backends)
        self._wanted: dict[str, Wanted | None] = {}  # by device
        self._chunks: dict[str, Iterator[int]] = {}  # what is still to be read of it
        self._stop = threading.Event()
        self.thread = ServiceThread("prefetch", self._run, site.clock, orders)
        self.is_possible = bool(self._backends)

    def start(self) -> None:
        if self.is_possible:
            self.thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.thread.join(STOP_S)  # a read from a disk that hangs cannot be stopped

    def _run(self) -> None:
        give_way()
        while not self._stop.wait(EVERY_S):
            for device in self._backends:
                with self.thread.pulse:
                    try:
                        self._read_on(device)
                    except (GPUQueueError, OSError) as error:  # the file is deleted or not ours to read, Ollama is away
                        logger.debug("nothing is read ahead: %s", error)
                    except Exception:
                        logger.exception("nothing is read ahead")

    def _read_on(self, device: str) -> None:
        """Continue to read what comes next now on a device, for at most ROUND_S."""
        wanted = self._wanted_on(device)
        if wanted != self._wanted.get(device):
            self._chunks[device] = self._read(device, wanted[-1]) if wanted else iter(())
            self._wanted[device] = wanted
        ends_s = self._clock.monotonic() + ROUND_S
        while wanted and self._computes(device, wanted) and not self._stop.is_set() and self._clock.monotonic() < ends_s:
            if not next(self._chunks[device], 0):
                return

    def _wanted_on(self, device: str) -> Wanted | None:
        computing = self._computing_on(device)
        if not computing:
            return None
        loaded = _loaded(self._seen(device))
        model = next((name for name in self._next_models(device, computing[0].job_id) if full_name(name) not in loaded), None)
        if model is None:
            return None
        return computing[0].job_id, computing[0].lease, model

    def _computes(self, device: str, wanted: Wanted) -> bool:
        return any((item.job_id, item.lease) == wanted[:2] for item in self._computing_on(device))

    def _computing_on(self, device: str) -> list[Reservation]:
        seen = self._seen(device)
        mine = [item for item in seen.reservations if item.running and item.worker_id == self._worker_id] if seen else []
        return [item for item in mine if not item.model or item.output_tokens]

    def _seen(self, device: str) -> DeviceView | None:
        view = self._view()
        return view.devices.get(device) if view else None

    def _read(self, device: str, model: str) -> Iterator[int]:
        for path in OllamaClient(self._backends[device]).files(model, timeout_s=QUERY_S):
            if os.path.isfile(path):
                yield from read_ahead(Path(path), may_hold=self._may_hold)

    def _may_hold(self, file_bytes: int) -> bool:
        available_bytes = host_memory.available_bytes()
        return available_bytes is not None and available_bytes >= needed_bytes(file_bytes, self._devices, self._backends)


def prefetching(devices: Sequence[DeviceSettings], backends: Iterable[BackendSettings]) -> dict[str, BackendSettings]:
    """Return the Ollama of each device whose models can be read ahead: it runs on this host, and the system is Linux."""
    here = [item for item in backends if item.prefetch and runs_here(item.url)] if is_supported else []
    found = {device.name: standing_on(device.name, here, device_count=len(devices)) for device in devices}
    return {name: standing[0] for name, standing in found.items() if standing}


def needed_bytes(file_bytes: int, devices: Iterable[DeviceSettings], backends: Mapping[str, BackendSettings]) -> int:
    """Return how much of the host's memory must be available before a file of this size is read ahead."""
    runners = sum(device.max_models for device in devices if device.name in backends)
    return file_bytes + runners * host_memory.PROMPT_CACHE_BYTES


def _loaded(device: DeviceView | None) -> set[str]:
    if device is None:
        return set()
    models = {full_name(item.model) for item in device.reservations}
    if device.settings.max_models > 1:  # else whatever was seen before is unloaded by now
        models |= {full_name(item.model) for item in device.residents}
    return models
