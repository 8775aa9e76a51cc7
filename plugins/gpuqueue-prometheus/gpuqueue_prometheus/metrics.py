"""Defines every metric (name, kind, labels, help) and turns samples into Prometheus families."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

Kind = Literal["gauge", "counter", "histogram"]

# A wait may be an instant or a working day, because queues have windows.
WAIT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 43200)
RUN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


@dataclass(frozen=True)
class Spec:
    """One metric. `help` is its line in the exposition and in the README."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


class Sample(NamedTuple):
    """One value of a gauge or a counter; `labels` is in the order of the metric's labels."""

    spec: Spec
    labels: tuple[str, ...]
    value: float


@dataclass(slots=True)
class Distribution:
    """One series of a histogram; `counts` has each bucket's own count, the last for values above all bounds."""

    spec: Spec
    labels: tuple[str, ...]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.spec.buckets) + 1)

    def observe(self, value: float) -> None:
        number = sum(value > bound for bound in self.spec.buckets)
        self.counts[number] += 1
        self.total += value

    def copy(self) -> Distribution:
        return Distribution(self.spec, self.labels, self.total, list(self.counts))


BUILD = Spec("gpuqueue_build_info", "gauge", ("version",), "Always 1; the label is the version of gpuqueue.")
WORKERS = Spec("gpuqueue_workers", "gauge", (), "Running workers.")
JOBS = Spec("gpuqueue_jobs", "gauge", ("queue", "state"), "Jobs by state; finished jobs are counted while they are kept.")
QUEUE_SERVED = Spec("gpuqueue_queue_served", "gauge", ("queue",), "1 if a running worker serves the queue, else 0.")
QUEUE_HELD = Spec("gpuqueue_queue_held", "gauge", ("queue", "reason"), "1 for each reason that holds the queue.")
VRAM_TOTAL = Spec("gpuqueue_vram_total_bytes", "gauge", ("device",), "The device's memory, if its driver can be read.")
VRAM_USED = Spec(
    "gpuqueue_vram_used_bytes", "gauge", ("device",), "Memory in use by all programs, if the device's driver can be read."
)
VRAM_BUDGET = Spec("gpuqueue_vram_budget_bytes", "gauge", ("device",), "Memory that gpuqueue may use, as configured.")
VRAM_RESERVED = Spec(
    "gpuqueue_vram_reserved_bytes", "gauge", ("device",), "Memory reserved for jobs until its release is verified."
)
VRAM_OWN = Spec(
    "gpuqueue_vram_own_bytes", "gauge", ("device",), "gpuqueue's share: reserved memory or that of loaded models, the larger."
)
MODEL_VRAM = Spec(
    "gpuqueue_model_vram_bytes", "gauge", ("device", "model"), "Memory of each loaded model, as last measured between two jobs."
)
DEVICE_UP = Spec("gpuqueue_device_up", "gauge", ("device",), "1 if the device can be read, 0 if it is lost.")
BACKEND_UP = Spec("gpuqueue_backend_up", "gauge", ("backend",), "1 if the backend is available, else 0.")
SERVICE_UP = Spec("gpuqueue_service_up", "gauge", ("service",), "0 if a running service reports an error, else 1.")
FOLLOWER_LAG = Spec(
    "gpuqueue_follower_lag_seconds",
    "gauge",
    ("follower",),
    'Age of the oldest event that a follower has not handled, 0 if none; follower="mirror" is the Redis mirror.',
)
ENQUEUED = Spec("gpuqueue_enqueued_total", "counter", ("queue",), "Jobs enqueued.")
FINISHED = Spec("gpuqueue_finished_total", "counter", ("queue", "outcome"), "Jobs finished: completed, cancelled or discarded.")
PREEMPTIONS = Spec("gpuqueue_preemptions_total", "counter", ("queue",), "Attempts preempted; no attempt is spent.")
RESCUES = Spec("gpuqueue_rescues_total", "counter", ("queue",), "Jobs rescued from workers that died.")
MODEL_LOADS = Spec(
    "gpuqueue_model_loads_total", "counter", ("device", "model"), "Jobs that started on a device without their model loaded."
)
TOKENS = Spec("gpuqueue_tokens_total", "counter", ("model", "kind"), "Tokens of completed jobs: prompt and output.")
WAIT = Spec(
    "gpuqueue_wait_seconds",
    "histogram",
    ("queue",),
    "Time from when an attempt could start (enqueued, due or released) until it started.",
    WAIT_BUCKETS,
)
RUN = Spec("gpuqueue_run_seconds", "histogram", ("queue", "task"), "Run time of attempts that completed.", RUN_BUCKETS)

METRICS = (
    BUILD,
    WORKERS,
    JOBS,
    QUEUE_SERVED,
    QUEUE_HELD,
    WAIT,
    RUN,
    ENQUEUED,
    FINISHED,
    PREEMPTIONS,
    RESCUES,
    VRAM_TOTAL,
    VRAM_USED,
    VRAM_BUDGET,
    VRAM_RESERVED,
    VRAM_OWN,
    MODEL_VRAM,
    MODEL_LOADS,
    TOKENS,
    DEVICE_UP,
    BACKEND_UP,
    SERVICE_UP,
    FOLLOWER_LAG,
)


def families(samples: Iterable[Sample], distributions: Iterable[Distribution]) -> Iterator[Metric]:
    """Build the families in the order of METRICS, including metrics without a sample."""
    values: dict[Spec, list[Sample]] = {}
    for sample in samples:
        values.setdefault(sample.spec, []).append(sample)
    series: dict[Spec, list[Distribution]] = {}
    for distribution in distributions:
        series.setdefault(distribution.spec, []).append(distribution)
    for spec in METRICS:
        if spec.kind == "histogram":
            yield _histogram(spec, series.get(spec, []))
            continue
        family = (GaugeMetricFamily if spec.kind == "gauge" else CounterMetricFamily)(spec.name, spec.help, labels=spec.labels)
        for sample in values.get(spec, []):
            family.add_metric(sample.labels, sample.value)
        yield family


def _histogram(spec: Spec, series: Iterable[Distribution]) -> Metric:
    family = HistogramMetricFamily(spec.name, spec.help, labels=spec.labels)
    bounds = [*map(floatToGoString, spec.buckets), "+Inf"]
    for distribution in series:
        below, buckets = 0, []
        for bound, count in zip(bounds, distribution.counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(distribution.labels, buckets, distribution.total)
    return family
