"""Owns the traces: reading the committed files, and cutting them shorter; runs nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from gpuqueue.simulators.ollama import GEMMA4_E4B, ModelSpec

FOLDER = Path(__file__).parent / "arrivals"
REALTIME, BATCH = "realtime", "batch"
NUM_CTX = 8192
QWEN3_4B = ModelSpec(
    name="qwen3:4b",
    bytes=3_000_000_000,
    tokens_per_s=70.0,
    family="qwen3",
    parameter_size="4.0B",
    context_length=32_768,
    context_token_bytes=16_384,
    layer_count=36,
    embedding_length=2560,
)
MODELS = {spec.name: spec for spec in (GEMMA4_E4B, QWEN3_4B)}
PREFILL_SPEEDUP = 20.0  # of the simulated Ollama: prompt tokens are read so many times faster than answers are written


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job of a trace; `at_s` in the card's seconds since the trace began."""

    at_s: float
    queue: str
    model: str
    prompt_tokens: int
    output_tokens: int

    @property
    def work_s(self) -> float:
        """How long the card needs for it, its model being loaded."""
        rate = MODELS[self.model].tokens_per_s
        return self.output_tokens / rate + self.prompt_tokens / (PREFILL_SPEEDUP * rate)


@dataclass(frozen=True, slots=True)
class Trace:
    """Jobs in the order in which they arrive; `affinity_s` is configured where it is run."""

    name: str
    about: str
    length_s: float
    affinity_s: float
    arrivals: tuple[Arrival, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(sorted({arrival.model for arrival in self.arrivals}))

    @property
    def work_s(self) -> float:
        return sum(arrival.work_s for arrival in self.arrivals)

    def only(self, queue: str) -> Trace:
        """Leave out the other queues' jobs."""
        return replace(self, arrivals=tuple(item for item in self.arrivals if item.queue == queue))

    def shorter(self, length_s: float) -> Trace:
        """Cut off what arrives later."""
        if length_s >= self.length_s:
            return self
        return replace(self, length_s=length_s, arrivals=tuple(item for item in self.arrivals if item.at_s < length_s))


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> Trace:
    """Read a committed trace. Raises: ValueError, naming the file, for what makes no sense in it."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        raise ValueError(f"there is no trace {name!r}; traces: {', '.join(names())}")
    return parsed(name, json.loads(path.read_text(encoding="utf-8")))


def parsed(name: str, found: dict[str, object]) -> Trace:
    """Make a trace of a file's data. Raises: ValueError."""
    listed = found["arrivals"]
    assert isinstance(listed, list)
    arrivals = tuple(Arrival(*item) for item in listed)
    for before, arrival in zip((None, *arrivals), arrivals, strict=False):
        if arrival.queue not in (REALTIME, BATCH) or arrival.model not in MODELS:
            raise ValueError(f"{name}.json: unknown queue or model in {arrival}")
        if before is not None and before.at_s > arrival.at_s:
            raise ValueError(f"{name}.json: {arrival} stands behind a later one")
        if min(arrival.prompt_tokens, arrival.output_tokens) < 1 or arrival.prompt_tokens + arrival.output_tokens > NUM_CTX:
            raise ValueError(f"{name}.json: {arrival} does not fit into {NUM_CTX} tokens")
    length_s, affinity_s = (float(str(found[key])) for key in ("length_s", "affinity_s"))
    return Trace(name, str(found["about"]), length_s, affinity_s, arrivals)
