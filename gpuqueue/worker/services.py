"""Runs the singleton services that plugins add, each in its own thread while its lease holds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from gpuqueue.client.queue import GPUQueue
from gpuqueue.contract.hookspecs import RegisterServicesDetails, Service, ServiceContext
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.domain.errors import StoreError, describe
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.domain.units import to_us
from gpuqueue.store.liveness import Silences
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import ServiceThread
from gpuqueue.worker.site import Site

EVERY_S = 1.0  # a service that no worker runs is taken over within about this time
SERVICE_LEASE_S = 10.0
AGAIN_S = 5.0  # after a service raised
STOP_S = 5.0  # what a service may take to end
logger = logging.getLogger("gpuqueue.worker")


def collect_services(gq: GPUQueue, plugins: Plugins) -> dict[str, Service]:
    """Collect the plugins' services; when two have the same name, the plugin registered last wins."""
    found: dict[str, Service] = {}
    for _, answer in plugins.each("register_services", RegisterServicesDetails(gq)):
        found = {**answer, **found}
    return found


class Services:
    """The services as this worker takes part in them."""

    def __init__(self, site: Site, gq: GPUQueue, services: Mapping[str, Service], orders: Orders) -> None:
        self._clock = site.clock
        self._hosts = [_Host(site, gq, name, service, orders) for name, service in services.items()]

    def start(self) -> None:
        for host in self._hosts:
            host.start()

    def stop(self) -> None:
        """Ask all to end, and leave them to other workers; one that does not end in time is left running."""
        for host in self._hosts:
            host.request_stop()
        give_up_s = self._clock.monotonic() + STOP_S
        for host in self._hosts:
            host.wait(give_up_s - self._clock.monotonic())


class _Host:
    """One service in this worker: one thread waits for its lease and extends it, another runs the service meanwhile."""

    def __init__(self, site: Site, gq: GPUQueue, name: str, service: Service, orders: Orders) -> None:
        self._store = site.store
        self._worker_id = site.worker_id
        self._clock = site.clock
        self._gq = gq
        self._name = name
        self._service = service
        self._silences = Silences(site.clock.monotonic)
        self._stop = threading.Event()
        self._thread = ServiceThread(f"service-{name}", self._run, site.clock, orders)

    def start(self) -> None:
        self._thread.start()

    def request_stop(self) -> None:
        self._stop.set()

    def wait(self, timeout_s: float) -> None:
        self._thread.join(max(timeout_s, 0.1))
        if self._thread.is_alive:
            logger.warning("service %s did not stop and is left running", self._name)

    def _expiry_us(self) -> int:
        return self._clock.wall() + int(SERVICE_LEASE_S * 1e6)

    def _silent_lease(self) -> tuple[int, int] | None:
        """Return the service's lease if it has not been extended for its whole length, by this worker's own clock."""
        with self._store.reading() as reads:
            found = next((item for item in reads.services(now_us=self._clock.wall()) if item.name == self._name), None)
        if found is None or found.expires_at is None:
            return None
        lease = (found.term, to_us(found.expires_at))
        return lease if self._silences.silent_s(self._name, lease, lease_s=SERVICE_LEASE_S) >= SERVICE_LEASE_S else None

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                term = self._store.services.take(
                    self._name,
                    self._worker_id,
                    silent=self._silent_lease(),
                    expires_at_us=self._expiry_us(),
                    now_us=self._clock.wall(),
                )
                if term is not None:
                    self._serve(term)
            except StoreError as error:
                logger.warning("service %s: %s; trying again", self._name, error)
            self._stop.wait(EVERY_S)

    def _serve(self, term: int) -> None:
        """Run the service until the worker stops or the lease is lost, starting it again after each failure."""
        stopping = threading.Event()

        def note(status: Mapping[str, Any]) -> None:
            self._store.services.note(self._name, term, status, now_us=self._clock.wall())

        context = ServiceContext(self._gq, stopping, term, note)
        runner = threading.Thread(target=self._go_on, args=(context,), name=f"gpuqueue-{self._name}", daemon=True)
        runner.start()
        extended_at_s = self._clock.monotonic()
        while not self._stop.wait(SERVICE_LEASE_S / 4):
            try:
                held = self._store.services.extend(self._name, term, expires_at_us=self._expiry_us())
            except StoreError as error:
                logger.warning("the lease of service %s could not be extended: %s", self._name, error)
                held = self._clock.monotonic() - extended_at_s < SERVICE_LEASE_S / 2
            else:
                extended_at_s = self._clock.monotonic()
            if not held:
                logger.warning("another worker took over service %s", self._name)
                break
        stopping.set()
        runner.join(STOP_S)
        if self._stop.is_set():
            self._store.services.release(self._name, term)

    def _go_on(self, context: ServiceContext[GPUQueue]) -> None:
        while not context.stopping.is_set():
            try:
                self._service(context)
                return
            except BaseException as error:  # a plugin's: whatever it is, the service is started again
                logger.error("service %s failed; starting it again in %g s\n%s", self._name, AGAIN_S, safe_trace(error))
                self._note_failure(context, error)
            context.stopping.wait(AGAIN_S)

    def _note_failure(self, context: ServiceContext[GPUQueue], error: BaseException) -> None:
        try:
            context.note({"error": describe(error)})
        except StoreError as failed:
            logger.warning("service %s: could not record its failure: %s", self._name, failed)
