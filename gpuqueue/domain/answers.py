"""Owns what policies answer: demands, placements, waits, holds, preemptions, limits, clean-ups."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from gpuqueue.domain.device import Resident
from gpuqueue.domain.settings import Rate


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job needs of a device; `vram_bytes` 0 means no memory, `model` "" no model."""

    vram_bytes: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """The device a job gets and the bytes it reserves there."""

    device: str
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job gets no device now."""

    reason: str
    detail: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a queue may not start jobs now; `refuse` ends its waiting jobs instead of keeping them."""

    reason: str
    detail: str
    until: datetime | None = None
    refuse: bool = False
    plugin: str = field(default="", compare=False)  # which said so; filled in by whoever asked it


class Preemption(NamedTuple):
    """An attempt that is to stop, at once or not before a moment; `for_job` is the job that it makes room for, if any."""

    job_id: int
    lease: int
    for_job: int | None = None
    not_before: datetime | None = None


class Limits(NamedTuple):
    """Tighter limits for a queue now, and why; None leaves what is configured."""

    concurrency: int | None = None
    rate: Rate | None = None
    reason: str = ""


class CleanUp(NamedTuple):
    """What a clean-up found; `verified` False means that the memory may still be taken (`detail` says why)."""

    verified: bool
    detail: str
    waited_s: float = 0.0
    residents: tuple[Resident, ...] = ()
    observed_bytes: int | None = None  # what the attempt was seen to take of the device's memory
