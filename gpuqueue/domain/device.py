"""Defines what a device and its backend report: readings, processes, loaded models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that uses memory on a device; None means unknown, as with some drivers and in containers."""

    pid: int
    used_bytes: int | None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A device's report about itself; None means unknown (no driver here, or the value is not supported)."""

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
        """Return its age in seconds, at least 0."""
        return max(0.0, (now - self.at).total_seconds())


@dataclass(frozen=True, slots=True)
class Resident:
    """A model loaded on a device, as its backend reports it; size above vram means layers on the CPU."""

    model: str
    size_bytes: int
    vram_bytes: int
