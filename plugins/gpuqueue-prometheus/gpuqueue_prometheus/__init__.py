"""Registers the plugin `prometheus`: its section of the configuration and its singleton service."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from gpuqueue import hookimpl
from gpuqueue.plugins import ConfigureDetails, RegisterServicesDetails, Service
from gpuqueue_prometheus.address import Address, read_address

__all__ = ["Prometheus"]


class Prometheus:
    """Serves metrics and health as a singleton service; does nothing without `[prometheus] listen`."""

    def __init__(self) -> None:
        self._address: Address | None = None

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        details.table.expect(["listen"])
        self._address = read_address(details.table)

    @hookimpl
    def register_services(self, details: RegisterServicesDetails) -> Mapping[str, Service] | None:
        if self._address is None:
            return None
        from gpuqueue_prometheus.service import NAME, run  # only a worker's process needs an HTTP server

        return {NAME: partial(run, self._address)}
