"""Derives expectations for a job (size, rate, duration) from what earlier jobs taught; stores nothing.

Each estimate has a kind and a key. Kinds that end in `_bytes` keep the highest value seen; the others keep a mean that follows
recent jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from gpuqueue.domain.models import full_name
from gpuqueue.domain.room import Server
from gpuqueue.domain.view import Estimate, Reservation

VRAM = "vram_bytes"  # of a model with what sizes its memory
SHOWN = "shown_bytes"  # of the same, as estimated from the model's description
LOAD = "load_s"  # of a model with its memory-sizing options
PROMPT_RATE = "prompt_tokens_per_s"  # of a model
OUTPUT_RATE = "output_tokens_per_s"  # of a model
OUTPUT = "output_tokens"  # of a queue's task with a model
RUN = "run_s"  # of the same, once it is loaded
SPILLED = "spilled"  # bytes of a model with its memory-sizing options that were not on the device
ONE_AT_ONCE = "one_at_once"  # 1 for a model that its server runs one request at a time, however it was started

Known = Mapping[tuple[str, str], Estimate]  # {(kind, key): estimate}

NEWEST_PART = 0.2  # the weight of a new value in a mean that already has some


class Observation(NamedTuple):
    """One value measured on a job."""

    kind: str
    key: str
    value: float


def model_key(model: str, options: Mapping[str, Any] | None = None) -> str:
    """Return the key of a model, alone or with the options that size its memory."""
    name = full_name(model)
    return f"{name} {json.dumps(options, sort_keys=True)}" if options else name


def memory_options(options: Mapping[str, Any], servers: Iterable[Server]) -> Mapping[str, Any]:
    """Return what sizes a model's memory: its configured options, and for how many requests at once it is loaded."""
    parallel = max((server.num_parallel for server in servers), default=1)
    return {**options, "num_parallel": parallel} if parallel > 1 else options


def work_key(queue: str, task: str, model: str) -> str:
    """Return the key of a kind of work."""
    return f"{queue} {task} {full_name(model)}".rstrip()


def believed(before: Estimate | None, observation: Observation) -> Estimate:
    """Fold an observation into an estimate."""
    if before is None:
        return Estimate(observation.value, 1)
    count = before.count + 1
    if observation.kind.endswith("_bytes"):
        return Estimate(max(before.value, observation.value), count)
    return Estimate(before.value + max(NEWEST_PART, 1 / count) * (observation.value - before.value), count)


def get(known: Known, kind: str, key: str) -> float | None:
    """Return the estimated value, None when nothing was learned."""
    found = known.get((kind, key))
    return None if found is None else found.value


def run_s(known: Known, queue: str, task: str, model: str) -> float | None:
    """Return how long such a job runs once its model is loaded."""
    return get(known, RUN, work_key(queue, task, model))


def left_s(known: Known, attempt: Reservation, now: datetime) -> float | None:
    """Return how much longer a running attempt is expected to take, None when that is not known."""
    if attempt.started_at is None:
        return None
    if not attempt.model:
        usual_s = run_s(known, attempt.queue, attempt.task, attempt.model)
        rest_s = None if usual_s is None else usual_s - (now - attempt.started_at).total_seconds()
        return rest_s if rest_s is None or rest_s > 0 else None
    rate = get(known, OUTPUT_RATE, model_key(attempt.model))
    usual = get(known, OUTPUT, work_key(attempt.queue, attempt.task, attempt.model))
    if not rate:
        return None
    # An answer that is already longer than usual may grow to its limit.
    expected = [value for value in (attempt.output_limit, usual) if value is not None and value >= attempt.output_tokens]
    return (min(expected) - attempt.output_tokens) / rate if expected else None
