"""Derives expectations for a job (size, rate, duration) from what earlier jobs taught; stores nothing.

Each estimate has a kind and a key. Kinds that end in `_bytes` keep the highest value seen; the others keep a mean that follows
recent jobs. What is expected of a kind in `SPREADING` is a range: how far its values are from their mean is learned too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
TURN = "turn_s"  # of the same on a device: from the end of the job before it to its own, whatever came between
GAP = "gap_s"  # of the same: from the end of the one before it to its own
RELEASE = "release_s"  # of a model, from the end of an attempt until its memory is free
SPILLED = "spilled"  # bytes of a model with its memory-sizing options that were not on the device
ONE_AT_ONCE = "one_at_once"  # 1 for a model that its server runs one request at a time, however it was started

Known = Mapping[tuple[str, str], Estimate]  # {(kind, key): estimate}

SPREADING = frozenset((LOAD, OUTPUT, RUN, TURN, RELEASE))
SPREAD = " spread"  # added to a kind: the mean distance of its values from their mean

NEWEST_PART = 0.2  # the weight of a new value in a mean that already has some
MOST_BEHIND_A_MEAN = 2 / NEWEST_PART - 1  # a mean that follows recent values is as sure as one of this many
ONE_SAYS = 0.5  # of a value that was seen once: how far the next may be from it
SHORTEST_GAP_S = 0.01
KEPT_PER_LOADED = 10.0  # seconds in which a model is kept for nothing, which cost as much as one that a job waits for it
DEVIATION = 1.25  # the standard deviation of values, for a mean distance of 1


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


def observed(observation: Observation, before: Estimate | None) -> Iterator[Observation]:
    """Yield what an observation teaches: its value, and how far that is from what was expected."""
    if observation.kind in SPREADING:
        value = observation.value
        distance = ONE_SAYS * value if before is None else abs(value - before.value)
        yield observation._replace(kind=observation.kind + SPREAD, value=distance)
    yield observation


@dataclass(frozen=True, slots=True, order=True)
class Length:
    """A length of time that is not known exactly: its mean in seconds, and its variance."""

    mean_s: float
    variance: float = 0.0

    def __add__(self, other: Length) -> Length:
        return Length(self.mean_s + other.mean_s, self.variance + other.variance)

    def scaled(self, factor: float) -> Length:
        return Length(self.mean_s * factor, self.variance * factor**2)

    def range_s(self, deviations: float) -> tuple[float, float]:
        """Return the range from so many standard deviations below to as many above; it has a long end, as waits do."""
        if self.mean_s <= 0 or self.variance <= 0:
            return max(self.mean_s, 0.0), max(self.mean_s, 0.0)
        spread = math.log1p(self.variance / self.mean_s**2)
        middle_s, factor = self.mean_s * math.exp(-spread / 2), math.exp(deviations * math.sqrt(spread))
        return middle_s / factor, middle_s * factor


def length(known: Known, kind: str, key: str, count: float = 1) -> Length | None:
    """Return how long so many of a kind take, one after the other; None when nothing was learned."""
    found, spread = known.get((kind, key)), known.get((kind + SPREAD, key))
    if found is None:
        return None
    variance = (DEVIATION * (ONE_SAYS * found.value if spread is None else spread.value)) ** 2
    return alike(Length(found.value, variance), count, behind=found.count)


def alike(one: Length, count: float, *, behind: int = 1) -> Length:
    """Return how long so many take of which each takes so long; `behind`: how many the mean comes from."""
    # Each is off by itself, and all together by what the mean is off.
    return Length(count * one.mean_s, one.variance * (count + count**2 / min(behind, MOST_BEHIND_A_MEAN)))


def total(lengths: Iterable[Length]) -> Length:
    return sum(lengths, Length(0.0))


def get(known: Known, kind: str, key: str) -> float | None:
    """Return the estimated value, None when nothing was learned."""
    found = known.get((kind, key))
    return None if found is None else found.value


def run_s(known: Known, queue: str, task: str, model: str) -> float | None:
    """Return how long such a job runs once its model is loaded."""
    return get(known, RUN, work_key(queue, task, model))


def worth_keeping_s(known: Known, model: str, options: Mapping[str, Any] | None) -> float:
    """Return for how long keeping a model costs no more than unloading and loading it; 0 where that is not known.

    Who keeps it for so long, and then unloads it, never pays more than twice what he would have, had he known the next job.
    """
    load_s, release_s = get(known, LOAD, model_key(model, options)), get(known, RELEASE, model_key(model))
    return 0.0 if load_s is None else KEPT_PER_LOADED * (load_s + (release_s or 0.0))


def next_use_s(known: Known, model: str, now: datetime) -> float | None:
    """Return when a job is expected to need a model again, in seconds from now; None when nothing was learned."""
    per_s = 0.0
    for (kind, key), found in known.items():
        if model and kind == GAP and key.endswith(f" {full_name(model)}"):
            # Longer than usual without one: it may be over.
            gap_s = max(found.value, now.timestamp() - found.at_us / 1e6) - (get(known, RUN, key) or 0.0)
            per_s += 1 / max(gap_s, SHORTEST_GAP_S)
    return 1 / per_s if per_s else None


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
