"""Defines the settings of queues, models, devices and backends as frozen data; reads no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WhenUnavailable = Literal["reject", "retry", "wait"]
Overrun = Literal["finish", "preempt", "dont_start"]  # what happens to a job that runs into a pause window
YieldMode = Literal["preempt", "drain"]  # whether running jobs stop for jobs of the queues that theirs yields to
OnSpill = Literal["accept", "wait", "fail"]  # what happens to a job whose model fit on the device only in part
PlacementMode = Literal["pack", "spread"]  # which device is chosen for a job: the fullest that has room, or the emptiest
LogFormat = Literal["text", "json"]  # the format of a worker's log
Resume = Literal["restart", "continue"]  # what happens to the output of a preempted attempt

LOWEST_PRIORITY, HIGHEST_PRIORITY = -1_000_000, 1_000_000
HIGHEST_COUNT = 1_000_000  # of whatever a setting counts
MOST_THREADS = 10_000  # of one worker


@dataclass(frozen=True, slots=True)
class Rate:
    """On average at most `count` jobs start per `per_s` seconds, in bursts of up to `count`; written as "10/m"."""

    count: int
    per_s: float


@dataclass(frozen=True, slots=True)
class WindowRule:
    """A queue's limits while a window is open; None keeps the configured value."""

    at: str
    concurrency: int | None = None
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """One queue's settings; part of the settings that all workers share."""

    name: str
    gpu: bool = False
    concurrency: int | None = None  # running jobs at once, over all workers; None is no limit
    rate: Rate | None = None  # how many jobs may start in a period
    pause: tuple[str, ...] = ()  # windows: "09:00-18:00", "mon-fri 09:00-18:00"
    windows: tuple[WindowRule, ...] = ()
    overrun: Overrun = "finish"
    timezone: str = "UTC"
    yields_to: tuple[str, ...] = ()
    when_unavailable: WhenUnavailable = "wait"
    retry_every_s: float = 300.0
    yield_mode: YieldMode = "preempt"
    min_run_s: float = 0.0  # an attempt is not preempted until so long after its first output, or its start if it has none
    nearly_done_s: float = 1.0  # nor if it is expected to end within this time
    max_preemptions: int | None = None  # nor if its job was already preempted this often
    protect_s: float | None = None  # how long a job that is protected from preemption may make another wait; None: to its end
    max_attempts: int | None = None
    timeout_s: float | None = None
    priority: int | None = None
    backend: str = ""  # the backend its jobs need; "" for none
    fallback: tuple[str, ...] = ()  # models to use if a job's own is missing or fits no device; a job can name others


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model's memory and options; `options` determine the memory and are the same for every job."""

    name: str
    vram_bytes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    resume: Resume = "continue"
    on_spill: OnSpill = "accept"


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """The part of one device that gpuqueue may use."""

    name: str  # "gpu0", or the card's UUID
    budget_bytes: int
    margin_bytes: int = 0
    max_models: int = 1
    slots: int = 1  # GPU jobs at once
    keep_warm_s: float | Literal["auto"] = 0.0  # "auto": as long as another job is expected before keeping it costs more
    index: int = 0
    min_free_bytes: int = 256 * 2**20  # of the card's memory, left free when a job starts
    affinity_s: float = 120.0  # how long a job for another model may wait for those that need the loaded one
    labels: tuple[str, ...] = ()  # names that a job may request instead of the device's own


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One Ollama and its timeouts; durations in seconds."""

    name: str = "ollama"
    url: str = "http://127.0.0.1:11434"
    connect_s: float = 1.0  # until it takes a connection, and until it answers a probe
    first_token_s: float = 300.0  # a cold load happens before the first token
    gap_s: float = 60.0  # between two tokens
    total_s: float = 1800.0
    settle_s: float = 2.0  # wait after an unload if no driver can confirm that the memory was released
    release_s: float = 15.0  # how long releasing the memory may take after an unload before it is reported
    probe_every_s: float = 5.0
    device: str = ""  # the device that it runs on; "" if it is not tied to one
    num_parallel: int = 1  # requests of one model that it was started to serve at once; each has a context of its own
    prefetch: bool = True  # read the next model's file ahead, if it is on this host and memory is available
