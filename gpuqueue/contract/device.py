"""Owns the contract of a device: what a GPU says of itself; it decides nothing and reserves nothing."""

from __future__ import annotations

from typing import Protocol

from gpuqueue.domain.device import Reading


class Device(Protocol):
    """One card. `read` takes some milliseconds, never raises, and puts a failure into the reading's `lost`."""

    def read(self) -> Reading: ...
