"""Assembles a worker: agrees on the settings, opens the devices, registers it, and creates its parts."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.shared import SharedSettings, settings_difference, settings_digest, settings_from_shared
from gpuqueue.contract.device import Device
from gpuqueue.contract.hookspecs import RegisterDevicesDetails
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.policies import in_force, worker_policies
from gpuqueue.devices.cached import CachedDevice
from gpuqueue.domain.errors import ConfigurationError, UnknownQueue
from gpuqueue.domain.job import Lease
from gpuqueue.domain.units import format_size
from gpuqueue.executors.processes import Children
from gpuqueue.store.job_threads import Waits
from gpuqueue.store.liveness import Liveness, alive_here
from gpuqueue.store.store import Store
from gpuqueue.store.wakeups import Listener
from gpuqueue.worker.attempt import Pipeline
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.coroutines import Coroutines
from gpuqueue.worker.device_jobs import DeviceJobs, threads_for
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.executors import Executors
from gpuqueue.worker.heartbeat import Heartbeat
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.maintenance import Maintenance
from gpuqueue.worker.model_probe import ModelProbe
from gpuqueue.worker.observations import Observations
from gpuqueue.worker.on_device import OnDevice
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.prefetch import Prefetch
from gpuqueue.worker.service_thread import Pulse
from gpuqueue.worker.services import Services, collect_services
from gpuqueue.worker.site import Site
from gpuqueue.worker.threads import Threads
from gpuqueue.worker.without_device import without_device


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one registered worker, started by `start`."""

    site: Site
    pulse: Pulse  # of the worker's loop
    liveness: Liveness
    waits: Waits
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
    prefetch: Prefetch
    services: Services

    def start(self) -> None:
        jobs = (self.threads, self.coroutines, self.device_jobs)
        for part in (self.heartbeat, self.output, *jobs, self.maintenance, self.prefetch, self.services):
            part.start()

    @property
    def is_idle(self) -> bool:
        """Whether no job is claimed, running, waiting to be written, or being cleaned up."""
        return self.exchange.is_idle and self.device_jobs.is_idle

    def make_up_for(self, given_up: Iterable[Lease]) -> None:
        """Free the threads and slots of given-up attempts without a device, which keep running."""
        for lease in given_up:
            if lease.placement is None and not self.coroutines.forget(lease):
                self.threads.replace(lease)


def boot(gq: GPUQueue, orders: Orders, *, queues: tuple[str, ...] | None, threads: int, accept_config: bool) -> Parts:
    """Open everything and register the worker.

    Raises: ConfigurationError if a live worker has other settings, or a device is too small; UnknownQueue; StoreError.
    """
    site = _site(gq, queues, accept_config=accept_config)
    config = gq.config.worker

    backends = Backends(site)
    children = Children()
    executors = Executors(site, gq, backends, children)
    services = collect_services(gq, site.plugins)
    async_jobs = config.async_jobs if executors.asynchronous() else 0
    device_threads = threads_for(site.settings.devices)
    liveness = Liveness(site.store.runtime_dir, site.worker_id, slots=threads + device_threads + async_jobs)
    waits = Waits(site.store.runtime_dir, site.worker_id, pool=threads, devices=device_threads)
    listener = Listener(site.store.runtime_dir, "workers", site.worker_id)
    orders.wake = listener.ring
    _register(gq, site, accept_config=accept_config)

    output = Output(site.store, site.clock, orders)
    observations = Observations(site)
    event_loop = EventLoop(site.clock)
    judge = Judge(site, backends, tasks=gq.tasks, max_payload_bytes=gq.config.max_payload_bytes, max_crashes=config.max_crashes)
    attempts = Attempts(site, judge, output, orders)
    heartbeat = Heartbeat(site, attempts, listener, orders, lease_s=config.lease_s)
    attempts.may_go_on = heartbeat.is_fresh
    pipeline = Pipeline(site, attempts, judge, output, event_loop, executors.of, liveness, end_worker=orders.fail)

    model_probe = ModelProbe(site, on_listed=listener.ring)
    dispatcher = Dispatcher(
        site,
        may_claim=heartbeat.is_fresh,
        models_known=lambda: model_probe.has_listed,
        is_preemptible=executors.is_preemptible,
        continues=executors.continues,
        where_alone=executors.where_alone,
        on_decided=observations.turns.saw,
        is_stopping=orders.stop.is_set,
    )
    exchange = Exchange(
        site,
        dispatcher,
        orders,
        may_claim=heartbeat.is_fresh,
        asynchronous=executors.asynchronous,
        internal=judge.internal,
    )
    plain = without_device(exchange, backends, observations)
    job_threads = Threads(site, pipeline, plain, exchange, liveness, waits, orders, count=threads)
    coroutines = Coroutines(
        pipeline, plain, exchange, liveness, site.clock, orders, limit=async_jobs, first_slot=threads + device_threads
    )
    exchange.claim_for(job_threads, coroutines)

    on_device = OnDevice(
        site,
        backends,
        observations,
        next_models=dispatcher.next_models,
        next_use_s=dispatcher.next_use_s,
        is_isolated=executors.is_isolated,
    )
    device_jobs = DeviceJobs(site, pipeline, on_device, liveness, waits, orders, first_slot=threads)

    maintenance = Maintenance(
        site,
        on_device,
        backends,
        model_probe,
        children,
        observations,
        orders,
        max_crashes=config.max_crashes,
        retention=gq.config.retention,
    )
    prefetch = Prefetch(site, orders, view=lambda: dispatcher.view, next_models=dispatcher.next_models)
    pulse = Pulse("loop", site.clock)
    heartbeat.pulses = (pulse, output.thread.pulse, coroutines.thread.pulse, maintenance.thread.pulse)
    heartbeat.parts = lambda: [
        pulse.info(),
        *(part.thread.info() for part in (heartbeat, output, coroutines, maintenance)),
        *([prefetch.thread.info()] if prefetch.is_possible else []),
        *(part.info() for part in (event_loop, job_threads, device_jobs)),
    ]
    return Parts(
        site=site,
        pulse=pulse,
        liveness=liveness,
        waits=waits,
        listener=listener,
        heartbeat=heartbeat,
        output=output,
        event_loop=event_loop,
        children=children,
        attempts=attempts,
        dispatcher=dispatcher,
        exchange=exchange,
        threads=job_threads,
        coroutines=coroutines,
        device_jobs=device_jobs,
        maintenance=maintenance,
        prefetch=prefetch,
        services=Services(site, gq, services, orders),
    )


def _site(gq: GPUQueue, queues: tuple[str, ...] | None, *, accept_config: bool) -> Site:
    """Open the store, agree on the settings, and open the devices."""
    store = gq.open_store(patient=True)
    clock = Clock(wall=store.now_us)
    settings = _agree(gq, store, clock, accept_config=accept_config)
    unknown = set(queues or ()) - gq.queue_names()
    if unknown:
        raise UnknownQueue(sorted(unknown)[0], gq.queue_names())
    gq.plugins.add_defaults(worker_policies())  # called after all others
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    devices = _open_devices(settings, gq.plugins, clock)
    return Site(worker_id, store, gq.plugins, settings, clock, WorkerLog(worker_id), devices, queues)


def _agree(gq: GPUQueue, store: Store, clock: Clock, *, accept_config: bool) -> SharedSettings:
    """Make this process's settings the shared ones, or refuse to start while a worker with others is running."""
    mine = gq.shared()
    now_us = clock.wall()
    with store.reading() as reads:
        alive = {row.info.id: alive_here(row.runtime_dir, row.info.id) for row in reads.workers(now_us=now_us)}
    theirs = store.workers.accept_configuration(
        digest=settings_digest(mine), settings=mine, force=accept_config, now_us=now_us, alive=alive
    )
    if theirs is not None:
        lines = "\n  ".join(settings_difference(mine, theirs))
        raise ConfigurationError(
            f"a running worker of {store.name} has different settings:\n  {lines}\n"
            "Use the same configuration, or pass --accept-config to make these settings the shared ones"
        )
    return in_force(settings_from_shared(mine))


def _open_devices(settings: SharedSettings, plugins: Plugins, clock: Clock) -> dict[str, CachedDevice]:
    devices: dict[str, Device] = {}
    for _, answer in plugins.each("register_devices", RegisterDevicesDetails(settings.devices, settings.backends)):
        devices = {**answer, **devices}
    for device in settings.devices:
        total_bytes = devices[device.name].read().total_bytes
        if total_bytes is not None and device.budget_bytes + device.margin_bytes > total_bytes:
            raise ConfigurationError(
                f"budget {format_size(device.budget_bytes)} + margin {format_size(device.margin_bytes)} exceeds the "
                f"{format_size(total_bytes)} of {device.name}; lower [gpu] budget or margin"
            )
    return {name: CachedDevice(device, clock=clock.monotonic) for name, device in devices.items()}


def _register(gq: GPUQueue, site: Site, *, accept_config: bool) -> None:
    """Create the worker's row, and with it the lease."""
    store, clock = site.store, site.clock
    lease_us = int(gq.config.worker.lease_s * 1e6)
    while not store.workers.register(
        site.worker_id,
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=site.queues,
        digest=settings_digest(gq.shared()),
        runtime_dir=str(store.runtime_dir),
        expires_at_us=clock.wall() + lease_us,
        now_us=clock.wall(),
    ):
        _agree(gq, store, clock, accept_config=accept_config)  # a worker that started at the same time has other settings
