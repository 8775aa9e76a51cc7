"""Does maintenance once a second in its own thread: rescue, probes, readings, events, retention, checkpoints; runs no job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gpuqueue.contract.hookspecs import EVENT_NAMES, RetentionDetails
from gpuqueue.domain.errors import FileReplaced, GPUQueueError, PluginFailed, StoreError
from gpuqueue.domain.job import Lease, State
from gpuqueue.domain.units import format_duration, format_size
from gpuqueue.executors.processes import Children
from gpuqueue.store import job_threads
from gpuqueue.store.liveness import Silences, executing, forget, proven_dead
from gpuqueue.store.log_readers import cause_of_large_log
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.model_probe import ModelProbe
from gpuqueue.worker.observations import Observations
from gpuqueue.worker.on_device import OnDevice, lease_of_reservation
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import ServiceThread
from gpuqueue.worker.site import Site

EVERY_S = 1.0
RETENTION_EVERY_S = 60.0
CHECKPOINT_BYTES = 1_000_000
LARGE_LOG_BYTES = 256_000_000
READING_EVERY_S = 2.0
SET_BACK_US = 500_000  # against the monotonic clock, between two looks
EVENTS_KEPT_S = 7 * 86400.0
FOLLOWERS_KEPT_S = 30 * 86400.0  # events are no longer kept for a follower that has not read one for this long
EVENTS_AT_ONCE = 200
JOBS_AT_ONCE = 5
EVENTS_PRUNED_AT_ONCE = 200
# The part of the time for which pruning may hold the write lock: so little that producers do not notice. It doubles each
# FASTER_EVERY_S until nothing is left to prune.
LEAST_PRUNING, MOST_PRUNING = 0.005, 0.3
FASTER_EVERY_S = 60.0
PRUNING_LASTS_S = 0.5  # in one round of duties
PRUNING_REST_S = 0.002
FOLLOWER = "hooks"
logger = logging.getLogger("gpuqueue.worker")


class Maintenance:
    """The duties of every worker in addition to its jobs; several workers can do them at the same time."""

    def __init__(
        self,
        site: Site,
        on_device: OnDevice,
        backends: Backends,
        model_probe: ModelProbe,
        children: Children,
        observations: Observations,
        orders: Orders,
        *,
        max_crashes: int,
        retention: Mapping[State, float | None],
    ) -> None:
        self._store = site.store
        self._plugins = site.plugins
        self._devices = site.devices
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._log = site.log
        self._on_device = on_device
        self._backends = backends
        self._model_probe = model_probe
        self._children = children
        self._observations = observations
        self._orders = orders
        self._max_crashes = max_crashes
        self._retention = retention
        self._ahead_us: int | None = None  # the wall clock, of the monotonic one
        self._silences = Silences(self._clock.monotonic)
        self._stop = threading.Event()
        self._pruned_at_s = self._clock.monotonic()
        self._pruning = LEAST_PRUNING
        self._read_at_s = float("-inf")
        self._warned_of_wal = False
        self._follows = any(self._plugins.answers(name) for name in EVENT_NAMES)
        self.thread = ServiceThread("maintenance", self._run, site.clock, orders)

    def start(self) -> None:
        if self._follows:
            self._store.followers.add(FOLLOWER)
        elif self._is_alone():  # no worker is left to read what the triggers write
            self._store.followers.remove(FOLLOWER)
        self._do(self.follow_clock)
        self._do(self.read_devices)  # before the first decision, which would not know that a card is hot
        self.thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.thread.join()
        self._observations.tell()
        if self._follows:
            self.deliver_events()

    def _is_alone(self) -> bool:
        with self._store.reading() as reads:
            rows = reads.workers(now_us=self._clock.wall())
        return all(row.info.id == self._worker_id for row in rows)

    def _run(self) -> None:
        self._do(self._model_probe.list_models)  # the jobs for devices wait for it
        while not self._stop.is_set():
            with self.thread.pulse:
                for duty in self._duties:
                    self._do(duty)
            self._stop.wait(EVERY_S)

    def _do(self, duty: Callable[[], None]) -> None:
        try:
            duty()
        except (GPUQueueError, OSError) as error:
            logger.warning("%s failed; trying again: %s", _named(duty), error)
        except Exception:
            logger.exception("%s failed; trying again", _named(duty))

    @property
    def _duties(self) -> Sequence[Callable[[], None]]:
        return (
            self.look_for_file,
            self.follow_clock,
            self.rescue,
            self._backends.probe,
            self.read_devices,
            self._model_probe.list_models,
            self._model_probe.look_at_loaded,
            self._model_probe.size_unknown,
            self.deliver_events,
            self._children.tidy,
            self._observations.tell,
            self.prune,
            self.checkpoint,
        )

    def look_for_file(self) -> None:
        """Notice that the file was deleted or replaced: no other process uses the one this worker has open."""
        try:
            self._store.look()
        except FileReplaced:
            if self._orders.failure is None:
                self._orders.file_gone(f"{self._store.name} was deleted or replaced while this worker was using it")

    def follow_clock(self) -> None:
        """Let nothing wait for a time from before the clock was set back; it may have been before this worker started."""
        ahead_us = self._clock.wall() - round(self._clock.monotonic() * 1e6)
        if self._ahead_us is None or ahead_us < self._ahead_us - SET_BACK_US:
            self._store.upkeep.set_back(now_us=self._clock.wall())
        self._ahead_us = ahead_us

    def rescue(self) -> None:
        """Rescue the jobs of dead workers: at once with proof of death, else after a lease without a sign of life.

        A worker that holds the lock of its liveness file may be frozen, so it is rescued after such a silence too.
        """
        now_us = self._clock.wall()
        with self._store.snapshot() as reads:
            rows = reads.workers(now_us=now_us)
            left = reads.abandoned_workers()
        for row in rows:
            if row.info.id == self._worker_id:
                continue
            executed = proven_dead(row.runtime_dir, row.info.id)
            if executed is not None:
                self._take_back(row.info.id, executed, "its process is dead (its liveness file is unlocked)", now_us)
                forget(row.runtime_dir, row.info.id)
                job_threads.forget(row.runtime_dir, row.info.id)
            elif self._silences.silent_s(row.info.id, row.info.expires_at, lease_s=row.lease_s) >= row.lease_s:
                proof = f"it gave no sign of life for its lease of {format_duration(row.lease_s)}"
                self._take_back(row.info.id, executing(row.runtime_dir, row.info.id), proof, now_us)
        self._silences.forget_others({row.info.id for row in rows})
        for worker_id in left:
            if worker_id != self._worker_id:
                self._take_back(worker_id, frozenset(), "it stopped before verifying a clean-up", now_us)

    def _take_back(self, worker_id: str, executed: frozenset[int] | None, proof: str, now_us: int) -> None:
        found = self._store.attempts.rescue(
            worker_id, by_worker=self._worker_id, executing=executed, proof=proof, max_crashes=self._max_crashes, now_us=now_us
        )
        self._log.rescued(worker_id, proof, found.jobs)
        for reservation in found.orphans:
            # In its own thread: it may wait for the dead worker's request to end on the backend.
            threading.Thread(target=self._clean_up, args=(lease_of_reservation(reservation),), daemon=True).start()

    def _clean_up(self, lease: Lease) -> None:
        try:
            self._on_device.clean_up(lease, orphaned=True)
        except StoreError as error:  # this worker stops: the next one to rescue it cleans up
            self._log.broken(lease, error)

    def read_devices(self) -> None:
        """Publish the devices' readings, for `status`, `gpu` and explanations in other processes."""
        if not self._devices or self._clock.monotonic() - self._read_at_s < READING_EVERY_S:
            return
        self._read_at_s = self._clock.monotonic()
        for name, device in self._devices.items():
            reading = device.read()
            event = self._store.backends.publish_reading(name, reading=reading, residents=None, now_us=self._clock.wall())
            self._log.device_changed(event, name, reading.lost)

    def deliver_events(self) -> None:
        """Deliver the events to the plugins."""
        if not self._follows:
            return
        while events := self._store.followers.take(FOLLOWER, limit=EVENTS_AT_ONCE):
            for event in events:
                if event.name in EVENT_NAMES:
                    self._plugins.tell(event.name, event)

    def prune(self) -> None:
        """Delete finished jobs and events past their retention, a little in each round of duties."""
        overdue_s = self._clock.monotonic() - self._pruned_at_s - RETENTION_EVERY_S
        if overdue_s < 0:
            return
        share = min(self._pruning * 2 ** min(overdue_s // FASTER_EVERY_S, 10), MOST_PRUNING)
        now_us, left_s, ends_s = self._clock.wall(), share * EVERY_S, self._clock.monotonic() + PRUNING_LASTS_S
        unfinished: list[partial[int]] = [*self._prunings(now_us), partial(self._prune_events, now_us)]
        while True:
            began_s = self._clock.monotonic()
            unfinished = [prune_some for prune_some in unfinished if prune_some()]  # a step of each: none waits for another
            left_s -= self._clock.monotonic() - began_s
            if not unfinished:
                break
            if left_s <= 0 or self._clock.monotonic() >= ends_s or self._stop.wait(PRUNING_REST_S):
                return
        self._pruned_at_s = self._clock.monotonic()
        self._pruning = max(share / 2, LEAST_PRUNING)

    def _prunings(self, now_us: int) -> Sequence[partial[int]]:
        try:
            keep = self._plugins.first("retention", RetentionDetails(self._retention, self._clock.now()))
        except PluginFailed as error:
            logger.error("nothing is pruned: %s", error)
            return ()
        return [
            partial(self._store.jobs.prune, state, before_us=now_us - int(kept_s * 1e6), limit=JOBS_AT_ONCE)
            for state, kept_s in (keep or {}).items()
            if kept_s is not None
        ]

    def _prune_events(self, now_us: int) -> int:
        return self._store.followers.prune(
            before_us=now_us - int(EVENTS_KEPT_S * 1e6),
            forget_before_us=now_us - int(FOLLOWERS_KEPT_S * 1e6),
            limit=EVENTS_PRUNED_AT_ONCE,
        )

    def checkpoint(self) -> None:
        """Keep the write-ahead log small, so no producer has to."""
        if self._store.upkeep.log_bytes() > CHECKPOINT_BYTES:
            self._store.upkeep.checkpoint()
        size = self._store.upkeep.log_bytes()
        if size > LARGE_LOG_BYTES and not self._warned_of_wal:
            logger.warning("%s-wal has grown to %s: %s", self._store.name, format_size(size), cause_of_large_log(self._store))
        self._warned_of_wal = size > LARGE_LOG_BYTES


def _named(duty: Callable[[], None]) -> str:
    return f"maintenance ({duty.__name__.replace('_', ' ')})"
