"""Runs the service: it listens, counts events and checks health until its worker stops or another takes over."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import Metric

from gpuqueue import GPUQueueError
from gpuqueue.plugins import ServiceContext
from gpuqueue_prometheus.address import Address
from gpuqueue_prometheus.counting import Counting
from gpuqueue_prometheus.findings import Status
from gpuqueue_prometheus.gauges import gauges
from gpuqueue_prometheus.health import Health, as_json
from gpuqueue_prometheus.metrics import JOBS, families
from gpuqueue_prometheus.server import CannotListen, Pages, Server

NAME = "prometheus"
EVERY_S = 1.0
logger = logging.getLogger("gpuqueue.prometheus")


def run(address: Address, context: ServiceContext) -> None:
    """Serve both pages until `stopping`; if the address cannot be opened, try again every second."""
    serving = _Serving(address, context)
    try:
        while not context.stopping.is_set():
            try:
                serving.go_on()
            except GPUQueueError as error:
                logger.warning("%s; trying again", error)
            context.stopping.wait(EVERY_S)
    finally:
        serving.close()


class _Serving:
    def __init__(self, address: Address, context: ServiceContext) -> None:
        self._address = address
        self._context = context
        self._counting = Counting(context.gq)
        self._health = Health(context.gq, self._note)
        self._pages = Pages(self._collect, self._check)
        self._server: Server | None = None
        self._status: Mapping[str, Any] = {}
        self._noted: Mapping[str, Any] = {}

    def go_on(self) -> None:
        if self._server is None:
            self._listen()
        if self._noted != self._status:
            self._note()
            self._noted = self._status
        while self._counting.catch_up() and not self._context.stopping.is_set():
            pass
        self._health.look()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def _listen(self) -> None:
        try:
            self._server = Server(self._address, self._pages)
        except CannotListen as error:
            if self._status != {"error": str(error)}:
                logger.warning("%s", error)
            self._status = {"error": str(error)}
        else:
            url = self._server.url
            self._status = {"metrics": f"{url}/metrics", "health": f"{url}/healthz", "error": None}

    def _note(self) -> None:
        self._context.note(self._status)

    def _collect(self) -> Iterable[Metric]:
        samples = list(gauges(self._context.gq))
        queues = {sample.labels[0] for sample in samples if sample.spec is JOBS}
        counts, distributions = self._counting.counted(sorted(queues))
        return families([*samples, *counts], distributions)

    def _check(self) -> tuple[bool, Mapping[str, Any]]:
        status, problems = self._health.report()
        return status is not Status.UNHEALTHY, as_json(status, problems)
