"""Owns the device that no driver here can read, such as a card in another host: only its budget is known; reads nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from gpuqueue.domain import DeviceSettings, Reading


class BudgetDevice:
    """A card of which only the configured budget is known; its readings have no figures and are never lost."""

    def __init__(self, settings: DeviceSettings, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.settings = settings
        self._now = now

    def read(self) -> Reading:
        return Reading(at=self._now())
