"""Owns the metrics there are: name, kind, labels, what each says, and how samples become families; measures nothing."""

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
    """One value of a gauge or a counter; `labels` in the order of its metric's."""

    spec: Spec
    labels: tuple[str, ...]
    value: float


@dataclass(slots=True)
class Distribution:
    """One series of a histogram; `counts` are those of each bucket alone, the last of what exceeds them all."""

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


BUILD = Spec("gpuqueue_build_info", "gauge", ("version",), "Always 1; the version of the gpuqueue that tells this.")
WORKERS = Spec("gpuqueue_workers", "gauge", (), "Workers that live.")
JOBS = Spec("gpuqueue_jobs", "gauge", ("queue", "state"), "Jobs now; finished ones as long as they are kept.")
QUEUE_SERVED = Spec("gpuqueue_queue_served", "gauge", ("queue",), "1 when a worker that lives serves the queue, else 0.")
QUEUE_HELD = Spec("gpuqueue_queue_held", "gauge", ("queue", "reason"), "1 for each reason why the queue may not start jobs now.")
VRAM_TOTAL = Spec("gpuqueue_vram_total_bytes", "gauge", ("device",), "The device's memory, where its driver can be read.")
VRAM_USED = Spec("gpuqueue_vram_used_bytes", "gauge", ("device",), "Memory taken, by whomever, where the driver can be read.")
VRAM_BUDGET = Spec("gpuqueue_vram_budget_bytes", "gauge", ("device",), "Memory that gpuqueue may use, as configured.")
VRAM_RESERVED = Spec(
    "gpuqueue_vram_reserved_bytes", "gauge", ("device",), "Memory reserved for jobs until it is verified to be back."
)
VRAM_OWN = Spec(
    "gpuqueue_vram_own_bytes", "gauge", ("device",), "gpuqueue's part: what is reserved, or what loaded models take where more."
)
MODEL_VRAM = Spec(
    "gpuqueue_model_vram_bytes", "gauge", ("device", "model"), "Memory of each loaded model, as last seen between two jobs."
)
DEVICE_UP = Spec("gpuqueue_device_up", "gauge", ("device",), "1 when the device could be read, 0 when it is lost.")
BACKEND_UP = Spec("gpuqueue_backend_up", "gauge", ("backend",), "1 when the backend can be used, 0 when it is away.")
SERVICE_UP = Spec("gpuqueue_service_up", "gauge", ("service",), "0 when a service that a worker runs says that it fails, else 1.")
FOLLOWER_LAG = Spec(
    "gpuqueue_follower_lag_seconds",
    "gauge",
    ("follower",),
    'How old the oldest event is that a follower has not handled, 0 for none; follower="mirror" is the Redis mirror\'s lag.',
)
ENQUEUED = Spec("gpuqueue_enqueued_total", "counter", ("queue",), "Jobs stored.")
FINISHED = Spec("gpuqueue_finished_total", "counter", ("queue", "outcome"), "Jobs finished: completed, cancelled, or discarded.")
PREEMPTIONS = Spec("gpuqueue_preemptions_total", "counter", ("queue",), "Attempts stopped to make room; no attempt was spent.")
RESCUES = Spec("gpuqueue_rescues_total", "counter", ("queue",), "Jobs taken back from workers that died.")
MODEL_LOADS = Spec(
    "gpuqueue_model_loads_total", "counter", ("device", "model"), "Jobs that began on a device where their model was not loaded."
)
TOKENS = Spec("gpuqueue_tokens_total", "counter", ("model", "kind"), "Tokens of completed jobs: prompt and output.")
WAIT = Spec(
    "gpuqueue_wait_seconds",
    "histogram",
    ("queue",),
    "From when an attempt could first begin (stored, its time come, given back) to its start.",
    WAIT_BUCKETS,
)
RUN = Spec("gpuqueue_run_seconds", "histogram", ("queue", "task"), "How long the attempts ran that completed.", RUN_BUCKETS)

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
    """Make the exposition's families, every metric in its place, also one without a sample."""
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
