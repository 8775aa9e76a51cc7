"""Registers the plugin `mirror`: its section of the configuration, its singleton service and its commands."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from gpuqueue import ConfigurationError, hookimpl
from gpuqueue.plugins import ConfigureDetails, RegisterCommandsDetails, RegisterServicesDetails, Service
from gpuqueue_redis_mirror.settings import Settings, read_settings

__all__ = ["Mirror"]


class Mirror:
    """Mirrors the queues into Redis or Valkey under BullMQ's layout; does nothing without `[mirror] url`."""

    def __init__(self) -> None:
        self._settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The section's settings. Raises: ConfigurationError if `url` is not set."""
        if self._settings is None:
            raise ConfigurationError('no mirror is configured; add [mirror] with url = "redis://localhost:6379/0"')
        return self._settings

    @hookimpl
    def configure(self, details: ConfigureDetails) -> None:
        self._settings = read_settings(details.table)

    @hookimpl
    def register_services(self, details: RegisterServicesDetails) -> Mapping[str, Service] | None:
        if self._settings is None:
            return None
        from gpuqueue_redis_mirror import service

        return {"mirror": partial(service.run, self._settings)}

    @hookimpl
    def register_commands(self, details: RegisterCommandsDetails) -> None:
        from gpuqueue_redis_mirror.commands import mirror

        details.cli.add_command(mirror)
