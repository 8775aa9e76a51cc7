"""Defines the answers of policies: demands, placements, waits, holds, preemptions, limits, clean-ups."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from gpuqueue.domain.device import Resident
from gpuqueue.domain.settings import Rate


@dataclass(frozen=True, slots=True)
class Demand:
    """A job's device requirements; `vram_bytes` 0 means no memory, `model` "" no model."""

    vram_bytes: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """The device chosen for a job, and the bytes it reserves there.

    `keep_warm_s`: where the device's `keep_warm` is "auto", how long the model may stay loaded for a job that is only expected.
    """

    device: str
    reserved_bytes: int
    keep_warm_s: float = 0.0


# The origin of a hold: a plugin's answer, a plugin's failure, a manual pause, a missing worker, or the job's own state.
HoldSource = Literal["plugin", "failure", "pause", "worker", "job"]


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job gets no device now. `reason` is a word and `detail` a sentence for people; decisions use neither.

    `ends_with_jobs` means that the wait ends when other jobs end. A wait with neither that nor `until` may last forever, and no
    start time is estimated for its job. `advice` tells a person what to do about it, with a command where there is one.
    """

    reason: str
    detail: str
    until: datetime | None = None
    ends_with_jobs: bool = field(default=False, kw_only=True)
    advice: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a queue may not start jobs now; `refuse` discards its waiting jobs instead of keeping them. Other fields as in Wait.

    gpuqueue fills in `plugin` and `source`; values set by a plugin are overwritten.
    """

    reason: str
    detail: str
    until: datetime | None = None
    refuse: bool = False
    plugin: str = field(default="", compare=False)  # the plugin that answered or failed
    ends_with_jobs: bool = field(default=False, kw_only=True)
    advice: str = field(default="", kw_only=True)
    source: HoldSource = field(default="plugin", kw_only=True, compare=False)


def wrong_words(answer: Hold | Wait) -> str:
    """Say what is wrong with what people and the clock read of a plugin's answer, "" if nothing is."""
    if not (
        isinstance(answer.reason, str) and answer.reason.strip() and isinstance(answer.detail, str) and answer.detail.strip()
    ):
        return "reason (one word) and detail (a sentence for people) must be non-empty strings"
    if not isinstance(answer.ends_with_jobs, bool):
        return "ends_with_jobs must be True or False"
    if not isinstance(answer.advice, str):
        return "advice must be a string, empty if there is none"
    if answer.until is None:
        return ""
    if not isinstance(answer.until, datetime) or answer.until.utcoffset() is None:
        return "until must be an aware datetime, or None"
    return ""


class Preemption(NamedTuple):
    """An attempt to stop, immediately or not before a given time; `for_job` is the job that needs its memory, if any."""

    job_id: int
    lease: int
    for_job: int | None = None
    not_before: datetime | None = None


class Limits(NamedTuple):
    """Tighter limits for a queue now, and why; None keeps the configured value."""

    concurrency: int | None = None
    rate: Rate | None = None
    reason: str = ""


class CleanUp(NamedTuple):
    """The result of a clean-up; `verified` False means that the memory may still be in use (`detail` says why)."""

    verified: bool
    detail: str
    waited_s: float = 0.0
    residents: tuple[Resident, ...] = ()
    observed_bytes: int | None = None  # the device memory that the attempt was seen to use
