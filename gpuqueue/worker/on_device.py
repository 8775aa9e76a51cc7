"""Prepares a device for attempts, writes their outcomes at once, learns from them, and verifies the clean-up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from gpuqueue.contract.hookspecs import CleanUpAttemptDetails, PrepareAttemptDetails
from gpuqueue.domain.answers import CleanUp, Placement
from gpuqueue.domain.device import Resident
from gpuqueue.domain.errors import GPUQueueError, OutOfMemory, PluginFailed, StoreError
from gpuqueue.domain.estimates import RELEASE, VRAM, memory_options, model_key
from gpuqueue.domain.job import Lease
from gpuqueue.domain.models import full_name
from gpuqueue.domain.outcomes import Completed
from gpuqueue.domain.room import sharing_with
from gpuqueue.domain.safe_text import safe_text
from gpuqueue.domain.settings import DeviceSettings
from gpuqueue.domain.units import from_us
from gpuqueue.domain.view import Reservation
from gpuqueue.worker.attempt import EndedAttempt, Kind
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.observations import Observations
from gpuqueue.worker.running import Attempt
from gpuqueue.worker.site import Site

CLEAN_UP_AGAIN_S = 1.0
GROWTH = 1.15  # of an estimate that turned out to be too low
WRITE_AGAIN_S = 1.0
Written = TypeVar("Written")
logger = logging.getLogger("gpuqueue.worker")


class OnDevice:
    """`stopping` is set when the worker ends: clean-ups stop waiting, and the rescuing worker verifies the rest."""

    def __init__(
        self,
        site: Site,
        backends: Backends,
        observations: Observations,
        *,
        next_models: Callable[[str, int], Sequence[str]],
        next_use_s: Callable[[str], float | None],
        is_isolated: Callable[[Lease], bool],
    ) -> None:
        self._store = site.store
        self._plugins = site.plugins
        self._settings = site.settings
        self._clock = site.clock
        self._log = site.log
        self._devices = site.devices
        self._device_settings = {device.name: device for device in site.settings.devices}
        self._backends = backends
        self._observations = observations
        self._next_models = next_models
        self._next_use_s = next_use_s
        self._is_isolated = is_isolated
        self.stopping = threading.Event()
        self.kind = Kind(self._publish, self._prepare, self.clean_up)

    # --- before it runs ---

    def _prepare(self, attempt: Attempt) -> None:
        lease = attempt.lease
        assert lease.placement is not None
        device = self._device_settings[lease.placement.device]
        with self._store.reading() as reads:
            attempt.partial = reads.partial_output(lease.job_id)
            others = [item for item in reads.reservations() if item.device == device.name and item.job_id != lease.job_id]
        details = PrepareAttemptDetails(
            lease=lease,
            device=device,
            models=self._settings.models,
            backend=self._backends.of(lease),
            read_device=self._devices[device.name].read_now,
            stopping=lambda: attempt.interruption is not None,
            isolated=self._is_isolated(lease),
            in_use=frozenset(item.model for item in others if item.model and not item.unloaded),
            memory_returns=any(item.unloaded for item in others),
            next_models=lambda: self._next_models(device.name, lease.job_id),
        )
        try:
            for _ in self._plugins.each("prepare_attempt", details):
                pass
        except PluginFailed as error:
            if isinstance(error.__cause__, GPUQueueError):
                raise error.__cause__ from None
            raise

    def _reservations(self, device: DeviceSettings) -> list[Reservation]:
        with self._store.reading() as reads:
            return [item for item in reads.reservations() if item.device == device.name]

    # --- how it ended ---

    def _publish(self, ended: EndedAttempt) -> bool:
        outcome = ended.outcome
        lease = outcome.lease
        self._aside(lease, self._note_failure, ended)
        if self._written(lambda: self._store.attempts.finish([outcome], now_us=self._clock.wall())):
            self._log.late(lease)
            return False  # the rescuing worker cleans up
        self._aside(lease, self._learn, ended)
        return True

    def _aside(self, lease: Lease, learn: Callable[..., object], *args: object) -> None:
        """Learn from an attempt; a failure is logged and leaves its outcome and its clean-up unchanged."""
        try:
            learn(*args)
        except BaseException:
            logger.exception("nothing was learned from job %d", lease.job_id)

    def _note_failure(self, ended: EndedAttempt) -> None:
        """Record what an attempt's error says of its backend and model, before another attempt can start."""
        error, lease = ended.error, ended.outcome.lease
        if error is not None:
            self._written(lambda: self._backends.failed(error))
        if isinstance(error, OutOfMemory) and lease.model:
            self._learn_of_too_little(lease)

    def _learn_of_too_little(self, lease: Lease) -> None:
        """Make the next attempt wait for more memory than this one had."""
        assert lease.placement is not None
        largest_bytes = max(device.budget_bytes for device in self._settings.devices)
        self._observations.learn(VRAM, self._memory_key(lease), min(lease.placement.reserved_bytes * GROWTH, largest_bytes))
        self._written(self._observations.tell)
        self._written(lambda: self._store.jobs.forget_demands([lease.job_id]))

    def _learn(self, ended: EndedAttempt) -> None:
        if not isinstance(ended.outcome, Completed):
            return
        lease = ended.outcome.lease
        self._observations.of_turn(lease)
        backend = self._backends.of(lease)
        if not lease.model or backend is None:
            self._observations.of_run(lease, ended.run_s)
            return
        self._written(lambda: self._backends.worked(backend))
        if isinstance(ended.value, Mapping):
            self._observations.of_answer(lease, ended.value, self._options(lease.model))
            self._written(self._observations.tell)

    def _options(self, model: str) -> Mapping[str, Any]:
        """Return the configured options of a model, which determine its memory."""
        found = (item.options for item in self._settings.models.values() if full_name(item.name) == full_name(model))
        return next(found, {})

    def _memory_key(self, lease: Lease) -> str:
        return model_key(lease.model, memory_options(self._options(lease.model), self._settings.backends))

    # --- the device afterwards ---

    def clean_up(self, lease: Lease, *, orphaned: bool = False) -> bool:
        """Release the device's memory, retrying until that is verified; returns False when this worker stops first."""
        assert lease.placement is not None
        device = self._device_settings.get(lease.placement.device)
        if device is None:  # no longer configured: nothing here can be verified
            return self._written(lambda: self._store.attempts.release_device(lease.job_id, lease.lease))
        while True:
            try:
                if self._clean_up_once(lease, device, orphaned=orphaned):
                    return True
            except BaseException as error:  # the memory stays reserved until a clean-up has proven that the card is quiet
                self._log.broken(lease, error)
            if self.stopping.wait(CLEAN_UP_AGAIN_S):
                return False

    def _clean_up_once(self, lease: Lease, device: DeviceSettings, *, orphaned: bool) -> bool:
        """Clean up, and free the reservation if that is verified; returns whether it is."""
        found = self._ask_to_clean_up(lease, device, orphaned=orphaned)
        self._aside(lease, self._learn_of_clean_up, lease, device, found, orphaned)
        if not found.verified:
            self._log.memory_kept(lease, device.name, found.detail)
            return False
        self._log.memory_released(lease, device.name, found.detail, found.waited_s)
        self._written(lambda: self._store.attempts.release_device(lease.job_id, lease.lease))
        return True

    def _learn_of_clean_up(self, lease: Lease, device: DeviceSettings, found: CleanUp, orphaned: bool) -> None:
        if found.observed_bytes is not None and not orphaned:
            self._observations.learn(VRAM, self._memory_key(lease), found.observed_bytes)
        if lease.model and found.verified and all(full_name(item.model) != full_name(lease.model) for item in found.residents):
            self._observations.learn(RELEASE, model_key(lease.model), found.waited_s)
        self._publish_reading(device.name, found.residents)

    def _ask_to_clean_up(self, lease: Lease, device: DeviceSettings, *, orphaned: bool) -> CleanUp:
        there = self._reservations(device)
        details = CleanUpAttemptDetails(
            lease=lease,
            device=device,
            backend=self._backends.of(lease),
            read_device=self._devices[device.name].read_now,
            stopping=self.stopping.is_set,
            orphaned=orphaned,
            isolated=self._is_isolated(lease),
            shared_with=tuple(sharing_with(lease.job_id, there)),
            is_unloaded=any((item.job_id, item.lease) == (lease.job_id, lease.lease) and item.unloaded for item in there),
            unloaded=partial(self._unloaded, lease, device),
            others=lambda: [item for item in self._reservations(device) if item.job_id != lease.job_id],
            next_models=lambda: self._next_models(device.name, lease.job_id),
            next_use_s=lambda: self._next_use_s(lease.model),
        )
        try:
            answers: list[CleanUp] = [answer for _, answer in self._plugins.each("clean_up_attempt", details)]
        except PluginFailed as error:
            return CleanUp(False, safe_text(error))
        unverified = [answer for answer in answers if not answer.verified]
        if unverified:
            return unverified[0]
        return answers[0] if answers else CleanUp(True, "nothing to clean up")

    def _unloaded(self, lease: Lease, device: DeviceSettings, residents: tuple[Resident, ...], held_bytes: int) -> None:
        self._publish_reading(device.name, residents)
        self._written(lambda: self._store.attempts.note_unloaded(lease.job_id, lease.lease, held_bytes))

    def _publish_reading(self, device: str, residents: tuple[Resident, ...]) -> None:
        reading = self._devices[device].read_now()
        event = self._written(
            lambda: self._store.backends.publish_reading(device, reading=reading, residents=residents, now_us=self._clock.wall())
        )
        self._log.device_changed(event, device, reading.lost)

    def _written(self, write: Callable[[], Written]) -> Written:
        """Write, retrying until this worker stops: an unwritten outcome would keep the device reserved indefinitely."""
        while True:
            try:
                return write()
            except StoreError as error:
                logger.warning("%s; trying again", error)
                if self.stopping.wait(WRITE_AGAIN_S):
                    raise


def lease_of_reservation(reservation: Reservation) -> Lease:
    """Build the lease for cleaning up a rescued reservation."""
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
