"""Stands in for a device that no local driver can read, such as a card on another host; only its budget is known."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from urllib.parse import urlsplit

from gpuqueue.domain.device import Reading
from gpuqueue.domain.settings import DeviceSettings


class BudgetDevice:
    """A card with only a configured budget; its readings have no figures and are never lost."""

    def __init__(self, settings: DeviceSettings, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.settings = settings
        self._now = now

    def read(self) -> Reading:
        return Reading(at=self._now())


def runs_here(url: str) -> bool:
    """Say whether a URL's host is this machine: one of its addresses can be bound. Unknown names are not."""
    try:
        addresses = socket.getaddrinfo(urlsplit(url).hostname, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in addresses:
        try:
            with closing(socket.socket(family, kind, protocol)) as probe:
                probe.bind(address)
        except OSError:
            continue
        return True
    return False
