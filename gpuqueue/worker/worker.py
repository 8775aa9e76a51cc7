"""Owns a worker process: boot, loop, signals, drain; what it runs and why is decided elsewhere."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from gpuqueue.devices import Device
from gpuqueue.domain import BackendSettings, Lease, QueueSettings
from gpuqueue.errors import ConfigurationError, StoreError, UnknownQueue
from gpuqueue.executors import Executor
from gpuqueue.executors.callables import CallableExecutor
from gpuqueue.plugin_manager import Plugins
from gpuqueue.queue import GPUQueue
from gpuqueue.settings import SharedSettings, settings_difference, settings_digest, settings_from_shared
from gpuqueue.store.bell import POLL_S, Listener
from gpuqueue.store.life import Life
from gpuqueue.store.outcomes import Outcome
from gpuqueue.units import format_size
from gpuqueue.worker.attempt import Judge
from gpuqueue.worker.attempts import ABANDON_S, Attempts
from gpuqueue.worker.device_jobs import DeviceJobs
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.heartbeat import Heartbeat
from gpuqueue.worker.maintenance import Maintenance
from gpuqueue.worker.output import Output
from gpuqueue.worker.pool import NUDGE_S, Pool

TRY_AGAIN_S = 1.0
SHORTEST_SLEEP_S = 0.01  # what is due and cannot be done yet must not keep the worker busy
logger = logging.getLogger("gpuqueue.worker")


class Worker:
    """Runs a queue object's jobs, in this thread (`run`) or in the background (`start`, `stop`).

    `queues` limits it to some queues; `threads` is how many jobs without a device run at once, beside one for each slot
    of each device. `burst` ends it when nothing more can start now. `accept_config` makes its settings the shared ones
    even when another live worker has others.
    """

    def __init__(
        self,
        gq: GPUQueue,
        *,
        queues: Iterable[str] | None = None,
        threads: int | None = None,
        burst: bool = False,
        accept_config: bool = False,
    ) -> None:
        self.id = ""
        self._gq = gq
        self._queues = None if queues is None else tuple(queues)
        self._threads = threads or gq.config.worker.threads
        self._burst = burst
        self._accept_config = accept_config
        self._stop_requested = threading.Event()
        self._stop_now = threading.Event()
        self._booted = threading.Event()
        self._boot_error: BaseException | None = None
        self._background: threading.Thread | None = None

    # --- the public face ---

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or `stop`; a second signal gives running jobs back at once.

        Raises: ConfigurationError when a live worker has other settings; UnknownQueue; StoreError.
        """
        restore = self._handle_signals()
        try:
            self._work()
        finally:
            restore()

    def start(self) -> Worker:
        """Work in a background thread; returns once the worker is registered. Raises: as `run`."""
        if self._background is not None:
            raise ConfigurationError("this worker has been started already")
        self._background = threading.Thread(target=self._work_in_background, name="gpuqueue-worker", daemon=True)
        self._background.start()
        self._booted.wait()
        if self._boot_error is not None:
            raise self._boot_error
        return self

    def stop(self, *, grace_s: float | None = None) -> None:
        """Claim nothing more, let running jobs end within the grace, give back the rest unspent, and return."""
        if grace_s is not None:
            self._grace_s = grace_s
        self.request_stop()
        if self._background is not None:
            self._background.join()

    def request_stop(self) -> None:
        """Begin to stop, without waiting; a second call gives running jobs back at once."""
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()
        listener = getattr(self, "_listener", None)
        if listener is not None:
            listener.ring()

    def __enter__(self) -> Worker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- boot ---

    def _work(self) -> None:
        self._grace_s = getattr(self, "_grace_s", self._gq.config.worker.grace_s)
        while True:
            self._boot()
            try:
                self._loop()
            finally:
                self._drain()
            if not self._heartbeat.lost or self._stop_requested.is_set():
                return
            logger.warning("worker %s begins anew under another id", self.id)

    def _work_in_background(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._boot_error = error
            if self._booted.is_set():
                logger.exception("worker %s ended", self.id)
        finally:
            self._booted.set()

    def _boot(self) -> None:
        gq = self._gq
        self._store = gq.open_store(patient=True)
        self._agree()
        unknown = set(self._queues or ()) - gq.queue_names()
        if unknown:
            raise UnknownQueue(sorted(unknown)[0], gq.queue_names())
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._plugins = self._worker_plugins()
        devices = self._open_devices()
        executors = self._collect_executors()
        judge = Judge(
            self._plugins,
            settings_of=self._settings_of,
            backend_of=self._backend_of,
            now=gq.now,
            max_payload_bytes=gq.config.max_payload_bytes,
        )
        slots = self._threads + sum(device.slots for device in self._settings.devices)
        self._life = Life(self._store.runtime_dir, self.id, slots=slots)
        self._listener = Listener(self._store.runtime_dir, "workers", self.id)
        lease_s = gq.config.worker.lease_s
        while not self._store.register_worker(
            self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._queues,
            digest=settings_digest(gq.shared()),
            expires_at_us=gq.now_us() + int(lease_s * 1e6),
            now_us=gq.now_us(),
        ):
            self._agree()  # another worker that started at the same time has other settings
        self._heartbeat = Heartbeat(self._store, self.id, lease_s=lease_s, now_us=gq.now_us, on_lost=self._lease_lost)
        self._output = Output(self._store)
        self._attempts = Attempts(
            self._store,
            executors,
            judge,
            self._output,
            worker_id=self.id,
            now=gq.now,
            on_given_up=self._given_up,
        )
        self._dispatcher = Dispatcher(
            self._store,
            self._plugins,
            self._settings,
            worker_id=self.id,
            serves=self._serves,
            may_claim=lambda: self._heartbeat.is_fresh,
            now=gq.now,
        )
        self._pool = Pool(self._dispatcher, self._life, threads=self._threads, run=self._run_plain)
        self._device_jobs = DeviceJobs(
            self._store,
            self._plugins,
            self._settings,
            devices,
            self._life,
            first_slot=self._threads,
            run=self._attempts.run,
            next_model=self._dispatcher.next_model,
            backend_of=self._backend_of,
            now_us=gq.now_us,
            on_backend=self._heard_of_backend,
        )
        self._maintenance = Maintenance(
            self._store,
            self._plugins,
            self._settings,
            devices,
            self._device_jobs,
            worker_id=self.id,
            max_crashes=gq.config.worker.max_crashes,
            retention=gq.config.retention,
            probe=self._probe,
            now=gq.now,
        )
        for part in (self._heartbeat, self._output, self._pool, self._device_jobs, self._maintenance):
            part.start()
        self._booted.set()
        served = ", ".join(self._queues) if self._queues else "all queues"
        logger.info("worker %s serves %s of %s", self.id, served, self._store.path)

    def _agree(self) -> None:
        """Make this process's settings the shared ones, or refuse to start beside a worker that has others."""
        mine = self._gq.shared()
        theirs = self._store.accept_configuration(
            digest=settings_digest(mine), settings=mine, force=self._accept_config, now_us=self._gq.now_us()
        )
        if theirs is not None:
            lines = "\n  ".join(settings_difference(mine, theirs))
            raise ConfigurationError(
                f"a running worker of {self._store.path} has other settings:\n  {lines}\n"
                "Start this one with the same configuration, or with --accept-config to make its settings the shared ones"
            )
        self._settings: SharedSettings = settings_from_shared(mine)

    def _worker_plugins(self) -> Plugins:
        """The queue object's plugins and, asked after them, those that only a worker needs."""
        from gpuqueue.policies import worker_policies

        plugins = self._gq.plugins
        plugins.add_defaults(worker_policies())
        return plugins

    def _open_devices(self) -> dict[str, Device]:
        devices: dict[str, Device] = {}
        for _, answer in self._plugins.each(
            "register_devices", {"devices": self._settings.devices, "backends": self._settings.backends}
        ):
            devices = {**answer, **devices}
        for settings in self._settings.devices:
            total_bytes = devices[settings.name].read().total_bytes
            if total_bytes is not None and settings.budget_bytes + settings.margin_bytes > total_bytes:
                raise ConfigurationError(
                    f"{settings.name} has {format_size(total_bytes)}, but budget {format_size(settings.budget_bytes)} + margin "
                    f"{format_size(settings.margin_bytes)} is more; lower [gpu] budget or margin"
                )
        return devices

    def _collect_executors(self) -> dict[str, Executor]:
        executors: dict[str, Executor] = {}
        details = {"backends": self._settings.backends, "models": self._settings.models, "devices": self._settings.devices}
        for _, answer in self._plugins.each("register_executors", details):
            executors = {**answer, **executors}
        for name, task in self._gq.tasks.items():
            if task.function is not None:
                executors[name] = CallableExecutor(task.function)
        return executors

    # --- the loop ---

    def _loop(self) -> None:
        data_version = -1
        with self._store.reading() as watching:  # one connection throughout: data_version compares with its own last look
            while not (self._stop_requested.is_set() or self._heartbeat.lost):
                try:
                    claimed = self._tick()
                    sleep_s = self._sleep_s()
                except StoreError as error:
                    logger.warning("%s; trying again", error)
                    claimed, sleep_s = 0, TRY_AGAIN_S
                except Exception:  # what a plugin answered must not end the worker
                    logger.exception("choosing jobs failed and is tried again")
                    claimed, sleep_s = 0, TRY_AGAIN_S
                if self._burst and not claimed and self._is_idle():
                    return
                wake_at_s = time.monotonic() + sleep_s
                while not (self._stop_requested.is_set() or self._heartbeat.lost):
                    left_s = min(wake_at_s - time.monotonic(), NUDGE_S if self._pool.is_waiting else POLL_S)
                    if left_s <= 0 or self._listener.wait(left_s):
                        break
                    self._pool.nudge()
                    found = watching.execute("PRAGMA data_version").fetchone()[0]
                    if found != data_version:
                        data_version = found
                        break

    def _tick(self) -> int:
        """Look at everything once: stop what must stop, and claim what may start; returns how many jobs were claimed."""
        self._attempts.stop_cancelled()
        self._attempts.stop_overdue()
        self._pool.give_back_stale()
        claimed = self._pool.exchange()  # first with the last decision, so that a ring is answered at once
        before = self._dispatcher.plain
        # A ring that the last decision has no answer to may be a new queue's, or one that is held no more.
        self._dispatcher.decide(force=not claimed and self._pool.has_room)
        if self._dispatcher.plain != before:
            claimed += self._pool.exchange()
        for lease in self._dispatcher.claim_for_devices():
            self._device_jobs.submit(lease)
            claimed += 1
        return claimed

    def _sleep_s(self) -> float:
        """How long nothing can change but by a ring."""
        sleep_s = 1.0 if not self._is_idle() else 5.0
        change = self._dispatcher.next_change()
        if change is not None:
            sleep_s = min(sleep_s, (change - self._gq.now()).total_seconds())
        moment_s = self._attempts.next_moment_s()
        if moment_s is not None:
            sleep_s = min(sleep_s, moment_s - time.monotonic())
        return max(sleep_s, SHORTEST_SLEEP_S)

    def _is_idle(self) -> bool:
        return self._pool.is_idle and self._device_jobs.is_idle

    def _run_plain(self, lease: Lease) -> Outcome | None:
        ended = self._attempts.run(lease)
        if ended is None:
            return None
        outcome, error = ended
        backend = getattr(error, "backend", None)
        if backend is not None:
            self._heard_of_backend(backend, error)
        return outcome

    def _given_up(self, lease: Lease) -> None:
        if lease.placement is None:
            self._pool.replace_thread(lease)

    def _heard_of_backend(self, name: str, error: BaseException | None) -> None:
        if error is not None:
            self._maintenance.backend_failed(name, error)
            return
        view = self._dispatcher.view
        known = view.backends.get(name) if view is not None else None
        if known is not None and known.failures:
            self._store.backend_answered(name, worked=True, now_us=self._gq.now_us())

    def _probe(self, backend: BackendSettings) -> None:
        from gpuqueue.executors.ollama_client import OllamaClient

        OllamaClient(backend).probe()

    # --- the end ---

    def _lease_lost(self) -> None:
        self._attempts.stop_all("lease_lost")
        self._listener.ring()

    def _drain(self) -> None:
        """Let attempts end within the grace, give back the rest, and leave nothing held."""
        self._pool.stop()
        self._pool.give_back()
        give_up_s = time.monotonic() + (0.0 if self._heartbeat.lost else self._grace_s)
        while not self._is_idle() and not self._stop_now.is_set() and time.monotonic() < give_up_s:
            self._tend()
            self._listener.wait(0.05)
        self._attempts.stop_all("stopping")
        give_up_s = time.monotonic() + ABANDON_S
        while self._attempts.any_running and time.monotonic() < give_up_s:
            self._tend()
            self._listener.wait(0.02)
        self._attempts.give_up_all()
        self._tend()
        # A clean-up in progress may take its time, unless somebody insists.
        give_up_s = time.monotonic() + self._grace_s
        while not self._device_jobs.is_idle and not self._stop_now.is_set() and time.monotonic() < give_up_s:
            self._listener.wait(0.05)
        self._device_jobs.stop(wait_s=ABANDON_S)
        self._heartbeat.stop()
        self._output.stop()
        try:
            self._store.unregister_worker(self.id, now_us=self._gq.now_us())
        except StoreError as error:
            logger.warning("worker %s could not sign off: %s; it is rescued instead", self.id, error)
        try:
            self._maintenance.stop()
        except StoreError as error:
            logger.warning("worker %s could not tell the last events: %s", self.id, error)
        self._listener.close()
        self._life.close()
        self._store.close()
        logger.info("worker %s has stopped", self.id)

    def _tend(self) -> None:
        """Write what ended, and stop what must stop."""
        self._pool.give_back()  # what an exchange that had begun before the pool was stopped still claimed
        try:
            self._pool.exchange()
            self._attempts.stop_cancelled()
            self._attempts.stop_overdue()
        except StoreError as error:
            logger.warning("%s; trying again", error)

    def _handle_signals(self) -> Callable[[], None]:
        if threading.current_thread() is not threading.main_thread():
            return lambda: None

        def on_signal(number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        return restore

    # --- what it knows ---

    def _serves(self, queue: str) -> bool:
        return self._queues is None or queue in self._queues

    def _settings_of(self, queue: str) -> QueueSettings:
        return self._settings.queues.get(queue) or QueueSettings(queue)

    def _backend_of(self, queue: str) -> BackendSettings | None:
        name = self._settings_of(queue).backend
        return next((backend for backend in self._settings.backends if backend.name == name), None)
