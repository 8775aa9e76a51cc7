"""Owns what a device and its backend say of themselves: readings, processes, loaded models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds memory on a device; None is unknown, as under some drivers and in containers."""

    pid: int
    used_bytes: int | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a device said of itself; None is unknown (no driver here, or the value is not supported)."""

    at: datetime
    name: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    utilisation_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    processes: tuple[DeviceProcess, ...] | None = None
    lost: str | None = None  # why it cannot be read

    def age_s(self, now: datetime) -> float:
        """Say how old it is."""
        return max(0.0, (now - self.at).total_seconds())


@dataclass(frozen=True, slots=True)
class Resident:
    """A model loaded on a device, as its backend reports it; size above vram means layers on the CPU."""

    model: str
    size_bytes: int
    vram_bytes: int
