"""Reads the clocks for a worker; no other file in this folder reads one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from gpuqueue.domain.units import from_us


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall` counts microseconds since 1970-01-01 UTC, `monotonic` seconds from an unknown start."""

    wall: Callable[[], int]
    monotonic: Callable[[], float] = time.monotonic

    def now(self) -> datetime:
        """Read `wall` as an aware time in UTC."""
        return from_us(self.wall())
