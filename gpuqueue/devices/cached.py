"""Caches a device's last reading, so concurrent callers read the card once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gpuqueue.contract.device import Device
from gpuqueue.domain.device import Reading

READING_LASTS_S = 1.0


class CachedDevice:
    """A device with a reading that is valid for READING_LASTS_S; safe to use from any thread."""

    def __init__(self, device: Device, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._clock = clock
        self._lock = threading.Lock()
        self._reading: Reading | None = None
        self._read_at_s = 0.0

    def read(self) -> Reading:
        """Return a reading that is at most READING_LASTS_S old."""
        with self._lock:
            if self._reading is None or self._clock() - self._read_at_s >= READING_LASTS_S:
                return self._read()
            return self._reading

    def read_now(self) -> Reading:
        """Read the device."""
        with self._lock:
            return self._read()

    def _read(self) -> Reading:
        self._reading = self._device.read()
        self._read_at_s = self._clock()
        return self._reading
