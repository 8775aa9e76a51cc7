"""Owns the settings of queues, models, devices and backends, as frozen data; reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WhenUnavailable = Literal["reject", "retry", "wait"]
Overrun = Literal["finish", "preempt", "dont_start"]  # what becomes of a job that runs into a pause window
YieldMode = Literal["preempt", "drain"]  # whether running jobs make room for those that their queue yields to
OnSpill = Literal["accept", "wait", "fail"]  # what becomes of a job whose model did not wholly fit the device
PlacementMode = Literal["pack", "spread"]  # which of several devices gets a job: the fullest that has room, or the emptiest
LogFormat = Literal["text", "json"]  # how a worker's log is written
Resume = Literal["restart", "continue"]  # what becomes of the output of an attempt that made room


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` jobs begin in any `per_s` seconds that follow a rest; "10/m" as people write it."""

    count: int
    per_s: float


@dataclass(frozen=True, slots=True)
class WindowRule:
    """What holds for a queue while a window is open; None leaves what is configured."""

    at: str
    concurrency: int | None = None
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How one queue behaves; the worker writes it into the queue's row."""

    name: str
    gpu: bool = False
    concurrency: int | None = None  # running jobs at once, over all workers; None is no limit
    rate: Rate | None = None  # how many jobs may begin in a time
    pause: tuple[str, ...] = ()  # windows: "09:00-18:00", "mon-fri 09:00-18:00"
    windows: tuple[WindowRule, ...] = ()
    overrun: Overrun = "finish"
    timezone: str = "UTC"
    yields_to: tuple[str, ...] = ()
    when_unavailable: WhenUnavailable = "wait"
    retry_every_s: float = 300.0
    yield_mode: YieldMode = "preempt"
    min_run_s: float = 2.0  # an attempt is not asked to make room before it has run so long
    nearly_done_s: float = 3.0  # nor when it is expected to end within this time
    max_preemptions: int = 5  # nor when its job has made room so often
    max_attempts: int | None = None
    timeout_s: float | None = None
    priority: int | None = None
    backend: str = ""  # the backend its jobs need; "" is none
    fallback: tuple[str, ...] = ()  # models for jobs whose own is missing or fits no device, unless a job names others


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a model needs; `options` size its memory and are pinned for every job."""

    name: str
    vram_bytes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    resume: Resume = "restart"
    on_spill: OnSpill = "accept"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What gpuqueue may use of one device."""

    name: str  # "gpu0", or the card's UUID
    budget_bytes: int
    margin_bytes: int = 0
    max_models: int = 1
    slots: int = 1  # GPU jobs at once
    keep_warm_s: float = 0.0
    index: int = 0
    min_free_bytes: int = 256 * 2**20  # of the card's memory, left free when a job starts
    affinity_s: float = 120.0  # how long a job for another model may wait for those that need the loaded one
    labels: tuple[str, ...] = ()  # what a job may ask for instead of the device's name


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One Ollama and how patient to be with it; durations in seconds."""

    name: str = "ollama"
    url: str = "http://127.0.0.1:11434"
    connect_s: float = 1.0
    first_token_s: float = 300.0  # a cold load happens before the first token
    gap_s: float = 60.0  # between two tokens
    total_s: float = 1800.0
    settle_s: float = 2.0  # after an unload where no driver can confirm that the memory is back
    release_s: float = 15.0  # how long an unload's memory may take to come back before it is reported
    probe_every_s: float = 5.0
    device: str = ""  # the device that it computes on; "" where it is not tied to one
