"""Owns what a worker is made of: agreeing on the settings, opening devices, and putting the parts together; runs no job."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.shared import SharedSettings, settings_difference, settings_digest, settings_from_shared
from gpuqueue.contract.device import Device
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.devices.cached import CachedDevice
from gpuqueue.domain.errors import ConfigurationError, UnknownQueue
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import format_size
from gpuqueue.domain.verdicts import DEFAULT_RULES, RetryRules
from gpuqueue.executors.processes import Children
from gpuqueue.store import Store
from gpuqueue.store.liveness import Life
from gpuqueue.store.wakeups import Listener
from gpuqueue.worker.attempt import Judge
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.coroutines import Coroutines
from gpuqueue.worker.device_jobs import DeviceJobs
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.executors import Executors
from gpuqueue.worker.heartbeat import Heartbeat
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.maintenance import Maintenance
from gpuqueue.worker.model_probe import ModelsSeen
from gpuqueue.worker.observations import Lessons
from gpuqueue.worker.output import Output
from gpuqueue.worker.services import Services, collect_services
from gpuqueue.worker.threads import Threads


@dataclass(frozen=True, slots=True)
class Parts:
    """One life of a worker; begun by `start`."""

    id: str
    log: WorkerLog
    store: Store
    life: Life
    listener: Listener
    heartbeat: Heartbeat
    output: Output
    event_loop: EventLoop
    children: Children
    attempts: Attempts
    dispatcher: Dispatcher
    exchange: Exchange
    threads: Threads
    coroutines: Coroutines
    device_jobs: DeviceJobs
    maintenance: Maintenance
    services: Services

    def start(self) -> None:
        parts = (self.heartbeat, self.output, self.threads, self.coroutines, self.device_jobs, self.maintenance, self.services)
        for part in parts:
            part.start()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is claimed, runs, waits to be written, or is being cleaned up."""
        return self.exchange.is_idle and self.device_jobs.is_idle

    def make_up_for(self, given_up: Iterable[Lease]) -> None:
        """Give what runs jobs without a device back the places of attempts that were given up and go on."""
        for lease in given_up:
            if lease.placement is None and not self.coroutines.forget(lease):
                self.threads.replace(lease)


def boot(
    gq: GPUQueue,
    *,
    queues: tuple[str, ...] | None,
    threads: int,
    accept_config: bool,
    may_begin: Callable[[], bool],
    on_lease_lost: Callable[[], None],
    on_file_gone: Callable[[str], None],
) -> Parts:
    """Open everything and register the worker.

    Raises: ConfigurationError when a live worker has other settings, or a device is too small; UnknownQueue; StoreError.
    """
    store = gq.open_store(patient=True)
    settings = _agree(gq, store, accept_config=accept_config)
    unknown = set(queues or ()) - gq.queue_names()
    if unknown:
        raise UnknownQueue(sorted(unknown)[0], gq.queue_names())
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    log = WorkerLog(worker_id)
    plugins = _worker_plugins(gq)
    devices = _open_devices(settings, plugins)
    children = Children()
    executors = Executors(gq, settings, plugins, children)
    services = collect_services(gq, plugins)

    def settings_of(queue: str) -> QueueSettings:
        return settings.queues.get(queue) or QueueSettings(queue)

    def rules_of(task: str) -> RetryRules:
        known = gq.tasks.get(task)
        return DEFAULT_RULES if known is None else known.rules

    async_jobs = gq.config.worker.async_jobs if executors.asynchronous() else 0
    device_slots = sum(device.slots for device in settings.devices)
    life = Life(store.runtime_dir, worker_id, slots=threads + device_slots + async_jobs)
    listener = Listener(store.runtime_dir, "workers", worker_id)
    lease_s = gq.config.worker.lease_s
    while not store.register_worker(
        worker_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=queues,
        digest=settings_digest(gq.shared()),
        expires_at_us=gq.now_us() + int(lease_s * 1e6),
        now_us=gq.now_us(),
    ):
        _agree(gq, store, accept_config=accept_config)  # another worker that started at the same time has other settings
    heartbeat = Heartbeat(store, worker_id, lease_s=lease_s, now_us=gq.now_us, on_lost=on_lease_lost, log=log)
    backends = Backends(store, settings, now=gq.now, log=log)
    output = Output(store)
    lessons = Lessons(store, now_us=gq.now_us)
    event_loop = EventLoop()
    judge = Judge(
        plugins,
        settings_of=settings_of,
        backend_of=backends.of,
        rules_of=rules_of,
        models=settings.models,
        backends=settings.backends,
        now=gq.now,
        max_payload_bytes=gq.config.max_payload_bytes,
    )

    attempts = Attempts(
        store,
        lambda lease: executors.of(lease, backends),
        judge,
        output,
        event_loop,
        lessons,
        worker_id=worker_id,
        now=gq.now,
        log=log,
        may_begin=may_begin,
    )
    dispatcher = Dispatcher(
        store,
        plugins,
        settings,
        devices,
        worker_id=worker_id,
        serves=lambda queue: queues is None or queue in queues,
        may_claim=lambda: heartbeat.is_fresh,
        is_preemptible=executors.is_preemptible,
        now=gq.now,
        log=log,
    )
    exchange = Exchange(
        store,
        dispatcher,
        worker_id=worker_id,
        may_claim=lambda: heartbeat.is_fresh,
        asynchronous=executors.asynchronous,
        now_us=gq.now_us,
        log=log,
    )
    device_jobs = DeviceJobs(
        store,
        plugins,
        settings,
        devices,
        life,
        first_slot=threads,
        run=attempts.run,
        next_model=dispatcher.next_model,
        is_isolated=executors.is_isolated,
        backends=backends,
        lessons=lessons,
        now_us=gq.now_us,
        log=log,
    )
    maintenance = Maintenance(
        store,
        plugins,
        settings,
        devices,
        device_jobs,
        backends,
        ModelsSeen(store, settings, now=gq.now),
        children,
        lessons,
        worker_id=worker_id,
        on_file_gone=on_file_gone,
        max_crashes=gq.config.worker.max_crashes,
        retention=gq.config.retention,
        now=gq.now,
        log=log,
    )

    def run_plain(lease: Lease) -> Outcome | None:
        ended = attempts.run(lease)
        if ended is None:
            return None
        if ended.error is not None:
            backends.heard(ended.error)
        return ended.outcome

    runner_threads = Threads(exchange, life, count=threads, run=run_plain, now=gq.now)
    coroutines = Coroutines(
        exchange,
        attempts,
        life,
        limit=async_jobs,
        first_slot=threads + device_slots,
        on_error=backends.heard,
    )
    exchange.claim_for(runner_threads, coroutines)
    return Parts(
        id=worker_id,
        log=log,
        store=store,
        life=life,
        listener=listener,
        heartbeat=heartbeat,
        output=output,
        event_loop=event_loop,
        children=children,
        attempts=attempts,
        dispatcher=dispatcher,
        exchange=exchange,
        threads=runner_threads,
        coroutines=coroutines,
        device_jobs=device_jobs,
        maintenance=maintenance,
        services=Services(store, gq, services, worker_id=worker_id, now_us=gq.now_us),
    )


def _agree(gq: GPUQueue, store: Store, *, accept_config: bool) -> SharedSettings:
    """Make this process's settings the shared ones, or refuse to start beside a worker that has others."""
    mine = gq.shared()
    theirs = store.accept_configuration(digest=settings_digest(mine), settings=mine, force=accept_config, now_us=gq.now_us())
    if theirs is not None:
        lines = "\n  ".join(settings_difference(mine, theirs))
        raise ConfigurationError(
            f"a running worker of {store.path} has other settings:\n  {lines}\n"
            "Start this one with the same configuration, or with --accept-config to make its settings the shared ones"
        )
    return settings_from_shared(mine)


def _worker_plugins(gq: GPUQueue) -> Plugins:
    """The queue object's plugins and, asked after them, those that only a worker needs."""
    from gpuqueue.decisions.policies import worker_policies

    gq.plugins.add_defaults(worker_policies())
    return gq.plugins


def _open_devices(settings: SharedSettings, plugins: Plugins) -> dict[str, CachedDevice]:
    devices: dict[str, Device] = {}
    for _, answer in plugins.each("register_devices", {"devices": settings.devices, "backends": settings.backends}):
        devices = {**answer, **devices}
    for device in settings.devices:
        total_bytes = devices[device.name].read().total_bytes
        if total_bytes is not None and device.budget_bytes + device.margin_bytes > total_bytes:
            raise ConfigurationError(
                f"{device.name} has {format_size(total_bytes)}, but budget {format_size(device.budget_bytes)} + margin "
                f"{format_size(device.margin_bytes)} is more; lower [gpu] budget or margin"
            )
    return {name: CachedDevice(device) for name, device in devices.items()}
