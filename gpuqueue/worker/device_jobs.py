"""Owns the threads that run jobs on devices: prepare, run, publish, and the verified clean-up; claims and chooses nothing."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, TypeVar

from gpuqueue.config.shared import SharedSettings
from gpuqueue.contract.hookspecs import CleanUpAttemptDetails, PrepareAttemptDetails
from gpuqueue.contract.plugin_set import PluginFailed, Plugins
from gpuqueue.devices.cached import CachedDevice
from gpuqueue.domain.answers import CleanUp, Placement
from gpuqueue.domain.errors import GPUQueueError, OutOfMemory, StoreError
from gpuqueue.domain.estimates import VRAM, model_key
from gpuqueue.domain.job import Lease
from gpuqueue.domain.models import full_name
from gpuqueue.domain.outcomes import Completed
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Reservation
from gpuqueue.store import Store
from gpuqueue.store.liveness import Life
from gpuqueue.worker.attempt import Attempt
from gpuqueue.worker.attempts import Ending
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.observations import Lessons

CLEAN_UP_AGAIN_S = 1.0
GROWTH = 1.15  # of an estimate that turned out to be too low
WRITE_AGAIN_S = 1.0
Written = TypeVar("Written")
logger = logging.getLogger("gpuqueue.worker")


class DeviceJobs:
    """One thread for each slot of each device."""

    def __init__(
        self,
        store: Store,
        plugins: Plugins,
        settings: SharedSettings,
        devices: Mapping[str, CachedDevice],
        life: Life,
        *,
        first_slot: int,
        run: Callable[[Lease, Callable[[Attempt], None]], Ending | None],
        next_model: Callable[[str], str | None],
        is_isolated: Callable[[str], bool],
        backends: Backends,
        lessons: Lessons,
        now_us: Callable[[], int],
        log: WorkerLog,
    ) -> None:
        self._store = store
        self._plugins = plugins
        self._devices = devices
        self._settings = settings
        self._device_settings = {device.name: device for device in settings.devices}
        self._life = life
        self._run = run
        self._next_model = next_model
        self._is_isolated = is_isolated
        self._now_us = now_us
        self._backends = backends
        self._lessons = lessons
        self._log = log
        self._ready: SimpleQueue[Lease | None] = SimpleQueue()
        self._busy_count = 0
        self._lock = threading.Lock()
        self.stopping = threading.Event()  # clean-ups stop waiting: the rescuer verifies what is left
        count = sum(device.slots for device in settings.devices)
        self._threads = [
            threading.Thread(target=self._work, args=(first_slot + slot,), name=f"gpuqueue-device-{slot}", daemon=True)
            for slot in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, lease: Lease) -> None:
        """Hand over a claimed job."""
        with self._lock:
            self._busy_count += 1
        self._ready.put(lease)

    @property
    def is_idle(self) -> bool:
        return self._busy_count == 0

    def stop(self, *, wait_s: float) -> None:
        """End the threads; one that is stuck in a job which was given up is left behind after `wait_s`."""
        self.stopping.set()
        for _ in self._threads:
            self._ready.put(None)
        give_up_s = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))

    def _work(self, slot: int) -> None:
        while (lease := self._ready.get()) is not None:
            self._life.executes(slot, lease.job_id)
            try:
                self._attempt(lease)
            except StoreError as error:
                # The row keeps its lease and reservation: whoever comes after this worker, which stops, takes them back.
                self._log.broken(lease, error)
            except Exception as error:
                self._log.broken(lease, error, traceback.format_exc())
            finally:
                if not self.stopping.is_set():  # else the life file may be closed already
                    self._life.executes(slot, 0)
                with self._lock:
                    self._busy_count -= 1
                self._store.bell.ring_workers()

    def _attempt(self, lease: Lease) -> None:
        assert lease.placement is not None
        began_s = time.monotonic()
        ended = self._run(lease, lambda attempt: self._prepare(attempt, lease, lease.placement))
        if ended is not None:
            error = ended.error
            if error is not None:
                self._written(lambda: self._backends.failed(error))
            if isinstance(error, OutOfMemory) and lease.model:
                # It takes more than was thought: the next attempt waits for that much.
                largest_bytes = max(device.budget_bytes for device in self._settings.devices)
                self._lessons.learn(VRAM, self._model_key(lease), min(lease.placement.reserved_bytes * GROWTH, largest_bytes))
                self._written(self._lessons.tell)
                self._written(lambda: self._store.jobs.forget_demand(lease.job_id))
            if self._written(lambda: self._store.attempts.finish([ended.outcome], now_us=self._now_us())):
                self._log.late(lease)
                return  # the rescuer cleans up
            if isinstance(ended.outcome, Completed):
                self._learn(lease, ended.value, time.monotonic() - began_s)
        self.clean_up(lease, orphaned=False)

    def _learn(self, lease: Lease, value: Any, run_s: float) -> None:
        backend = self._backends.of(lease)
        if not lease.model or backend is None:
            self._lessons.of_run(lease, run_s)
            return
        self._written(lambda: self._backends.worked(backend))
        if isinstance(value, Mapping):
            self._lessons.of_answer(lease, value, self._options(lease.model))
            self._written(self._lessons.tell)

    def _options(self, model: str) -> Mapping[str, Any]:
        """The configured options of a model, which size its memory."""
        found = (item.options for item in self._settings.models.values() if full_name(item.name) == full_name(model))
        return next(found, {})

    def _model_key(self, lease: Lease) -> str:
        return model_key(lease.model, self._options(lease.model))

    def _prepare(self, attempt: Attempt, lease: Lease, placement: Placement | None) -> None:
        assert placement is not None
        with self._store.snapshot() as reads:
            attempt.partial = reads.partial_output(lease.job_id)
        device = self._device_settings[placement.device]
        details = PrepareAttemptDetails(
            lease=lease,
            device=device,
            models=self._settings.models,
            backend=self._backends.of(lease),
            read_device=self._devices[device.name].read_now,
            stopping=lambda: attempt.interruption is not None,
            isolated=self._is_isolated(lease.task),
        )
        try:
            for _ in self._plugins.each("prepare_attempt", details):
                pass
        except PluginFailed as error:
            if isinstance(error.__cause__, GPUQueueError):
                raise error.__cause__ from None
            raise

    def clean_up(self, lease: Lease, *, orphaned: bool) -> bool:
        """Give the device's memory back, again and again until it is verified; returns False when this worker stops first."""
        assert lease.placement is not None
        device = self._device_settings.get(lease.placement.device)
        if device is None:  # no longer configured: nothing here can be verified
            return self._written(lambda: self._store.attempts.release_device(lease.job_id, lease.lease))
        while True:
            found = self._clean_up_once(lease, device, orphaned=orphaned)
            if found.observed_bytes is not None and not orphaned:
                self._lessons.learn(VRAM, self._model_key(lease), found.observed_bytes)
            self._publish(device.name, found)
            if found.verified:
                self._log.memory_released(lease, device.name, found.detail, found.waited_s)
                self._written(lambda: self._store.attempts.release_device(lease.job_id, lease.lease))
                return True
            self._log.memory_kept(lease, device.name, found.detail)
            if self.stopping.wait(CLEAN_UP_AGAIN_S):
                return False

    def _clean_up_once(self, lease: Lease, device: DeviceSettings, *, orphaned: bool) -> CleanUp:
        details = CleanUpAttemptDetails(
            lease=lease,
            device=device,
            backend=self._backends.of(lease),
            read_device=self._devices[device.name].read_now,
            next_model=lambda: self._next_model(device.name),
            stopping=self.stopping.is_set,
            orphaned=orphaned,
            isolated=self._is_isolated(lease.task),
        )
        try:
            answers: list[CleanUp] = [answer for _, answer in self._plugins.each("clean_up_attempt", details)]
        except PluginFailed as error:
            return CleanUp(False, str(error))
        unverified = [answer for answer in answers if not answer.verified]
        if unverified:
            return unverified[0]
        return answers[0] if answers else CleanUp(True, "nothing to clean up")

    def _written(self, write: Callable[[], Written]) -> Written:
        """Write, again and again until this worker stops: what stays unwritten would keep the device for ever."""
        while True:
            try:
                return write()
            except StoreError as error:
                logger.warning("%s; trying again", error)
                if self.stopping.wait(WRITE_AGAIN_S):
                    raise

    def _publish(self, device: str, found: CleanUp) -> None:
        reading = self._devices[device].read_now()
        event = self._written(
            lambda: self._store.backends.publish_reading(
                device, reading=reading, residents=found.residents, now_us=self._now_us()
            )
        )
        self._log.device_changed(event, device, reading.lost)


def lease_of(reservation: Reservation) -> Lease:
    """Make the lease under which a rescued reservation is cleaned up."""
    return Lease(
        job_id=reservation.job_id,
        lease=reservation.lease,
        queue=reservation.queue,
        task="",
        attempt=0,
        max_attempts=0,
        arguments={},
        timeout_s=None,
        started_at=from_us(0),
        model=reservation.model,
        placement=Placement(reservation.device, reservation.reserved_bytes),
    )
