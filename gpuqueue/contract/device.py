"""Defines the contract of a device, which reports a GPU's state; it decides and reserves nothing."""

from __future__ import annotations

from typing import Protocol

from gpuqueue.domain.device import Reading


class Device(Protocol):
    """One card. `read` takes some milliseconds, never raises, and reports a failure in the reading's `lost`."""

    def read(self) -> Reading: ...
