"""Owns what policies answer: demands, placements, waits, holds, preemptions, limits, clean-ups."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

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


# Who holds: a plugin's answer, a plugin's failure, a person's pause, the lack of a worker, or the state of the job itself.
HoldSource = Literal["plugin", "failure", "pause", "worker", "job"]


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job gets no device now. `reason` is a word and `detail` a sentence for people; nothing is decided by them.

    `ends_with_jobs` says that it ends when other jobs do. A wait with neither that nor `until` may last for ever, and no start is
    expected of its job. `advice` is what a person can do about it, a command where there is one.
    """

    reason: str
    detail: str
    until: datetime | None = None
    ends_with_jobs: bool = field(default=False, kw_only=True)
    advice: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a queue may not start jobs now; `refuse` ends its waiting jobs instead of keeping them. The rest is as in Wait.

    `plugin` and `source` are filled in by gpuqueue: a plugin that sets them sets nothing.
    """

    reason: str
    detail: str
    until: datetime | None = None
    refuse: bool = False
    plugin: str = field(default="", compare=False)  # the name of the one that answered or failed
    ends_with_jobs: bool = field(default=False, kw_only=True)
    advice: str = field(default="", kw_only=True)
    source: HoldSource = field(default="plugin", kw_only=True, compare=False)


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
