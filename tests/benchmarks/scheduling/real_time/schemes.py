"""Owns the schemes under which a trace is run, and the configuration of those that are gpuqueue's; runs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.benchmarks.scheduling.real_time.traces import BATCH, MODELS, NUM_CTX, REALTIME, Trace

BUDGET_BYTES = 5_000_000_000
CONTEXT_BYTES = 100_000_000  # what the configured num_ctx takes beside a model's size
# In the card’s seconds. The queue settings' defaults, 2 s and 3 s, let a person wait longer for less waste.
MIN_RUN_S = 1.0
NEARLY_DONE_S = 1.0
RELEASE_S, PROBE_EVERY_S = 15.0, 5.0

Runner = Literal["worker", "direct", "original"]


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to bring a trace's jobs to the card.

    queue: where all jobs go, whatever their trace says; None leaves them apart. yield_mode: None does not yield.
    warm: the model stays loaded for ever. has_batch: False leaves the batch jobs out.
    """

    name: str
    title: str
    runner: Runner = "worker"
    queue: str | None = None
    yield_mode: str | None = None
    resume: str = "restart"
    affinity: bool = True
    warm: bool = False
    has_batch: bool = True

    @property
    def is_gpuqueue(self) -> bool:
        """Whether it is what gpuqueue is for, and not what it is compared with."""
        return self.yield_mode is not None

    def toml(self, trace: Trace, *, url: str, speed: float) -> str:
        """Write the worker's configuration; durations are divided by the speed."""
        lines = [
            'database = "sqlite:///gpuqueue.db"',
            f'[gpu]\nbudget = {BUDGET_BYTES}\nmargin = "3GB"\nmax_models = 1\nkeep_warm = "{"24h" if self.warm else "0s"}"',
            f'affinity = "{duration(trace.affinity_s if self.affinity else 0.0, speed)}"',
            f'[ollama]\nurl = "{url}"\nrelease = "{duration(RELEASE_S, speed)}"',
            f'probe_every = "{duration(PROBE_EVERY_S, speed)}"',
        ]
        for model in trace.models:
            size = MODELS[model].bytes + CONTEXT_BYTES
            lines.append(f'[models."{model}"]\nvram = {size}\nresume = "{self.resume}"\noptions = {{ num_ctx = {NUM_CTX} }}')
        for name in [self.queue] if self.queue else [REALTIME, BATCH]:
            lines.append(f"[queues.{name}]\ngpu = true\nconcurrency = 1")
        if self.yield_mode is not None:
            lines.append(
                f'yields_to = ["{REALTIME}"]\nyield_mode = "{self.yield_mode}"\nmin_run = "{duration(MIN_RUN_S, speed)}"\n'
                f'nearly_done = "{duration(NEARLY_DONE_S, speed)}"'
            )
        return "\n".join(lines) + "\n"


def duration(card_s: float, speed: float) -> str:
    """Word a duration of the card's time in real milliseconds."""
    return f"{card_s / speed * 1000:.0f}ms"


BASELINE = "baseline"
FCFS, ORIGINAL, DRAIN, PREEMPT, CONTINUE = "fcfs", "original", "drain", "preempt", "continue"
SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(BASELINE, "realtime only", yield_mode=None, warm=True, has_batch=False),
        Scheme("direct", "direct to Ollama", runner="direct"),
        Scheme(FCFS, "first come, first served", queue="all", affinity=False),
        Scheme(ORIGINAL, "pause on active", runner="original"),
        Scheme(DRAIN, "gpuqueue drain", yield_mode="drain"),
        Scheme(PREEMPT, "gpuqueue preempt", yield_mode="preempt"),
        Scheme(CONTINUE, "gpuqueue preempt, continue", yield_mode="preempt", resume="continue"),
    )
}
