"""Plays a trace in virtual time as it was run in real time, and says whether both took as long."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from gpuqueue.testing.virtual import VirtualModel
from tests.benchmarks.scheduling import hours, play
from tests.benchmarks.scheduling.real_time.results import Check
from tests.benchmarks.scheduling.real_time.schemes import CONTEXT_BYTES, MIN_RUN_S, NEARLY_DONE_S, Scheme
from tests.benchmarks.scheduling.real_time.stage import PATIENCE
from tests.benchmarks.scheduling.real_time.traces import BATCH, MODELS, REALTIME, Trace

TOLERANCE = 0.05


def played(scheme: Scheme, trace: Trace) -> play.Played:
    """Play a trace in virtual time, under a scheme that has a worker."""
    models = {name: VirtualModel(name, MODELS[name].bytes, MODELS[name].tokens_per_s) for name in trace.models}

    def draw(_: random.Random) -> Iterator[hours.Arrival]:
        for item in trace.arrivals:
            queue = scheme.queue or item.queue
            yield hours.Arrival(item.at_s, queue, models[item.model], item.prompt_tokens, item.output_tokens)

    yielding: Mapping[str, Any] = {}
    if scheme.yield_mode is not None:
        yielding = {
            "yields_to": [REALTIME],
            "yield_mode": scheme.yield_mode,
            "min_run": f"{MIN_RUN_S}s",
            "nearly_done": f"{NEARLY_DONE_S}s",
        }
    hour = hours.Hour(
        trace.name,
        trace.about,
        draw,
        queues={scheme.queue: {}} if scheme.queue else {REALTIME: {}, BATCH: yielding},
        gpu={"affinity": f"{trace.affinity_s if scheme.affinity else 0.0}s", "keep_warm": "24h" if scheme.warm else "0s"},
        models={name: {"vram": model.size_bytes + CONTEXT_BYTES, "resume": scheme.resume} for name, model in models.items()},
        length_s=PATIENCE * max(trace.length_s, trace.work_s),
    )
    return play.play(hour, play.Scheme(scheme.name, scheme.title), seed=1, prompt_cache=False)


def check(trace: str, scheme: Scheme, real_s: float, virtual_s: float) -> Check:
    """Compare how long all jobs of a trace took, in the card's seconds."""
    off = real_s / virtual_s - 1
    what = f"{trace}, {scheme.title}: real and virtual time differ by at most {TOLERANCE:.0%} until all jobs had ended"
    return Check(what, abs(off) <= TOLERANCE, f"{real_s:.0f} s and {virtual_s:.0f} s, {off:+.1%}")
