"""Keeps the faults that are yet to happen in the simulated Ollama; other files make them happen."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from gpuqueue.simulators.ollama.models import tagged

KINDS: dict[str, str] = {
    "out_of_memory": "the next load fails with cudaMalloc's error (500)",
    "crash_before_first_token": "the runner dies before its first token (500)",
    "crash_mid_stream": "the runner dies after `after_tokens` tokens; the last line of the stream is an error",
    "silent_truncation": "the stream ends after `after_tokens` tokens without a done line",
    "hang": "nothing is sent until the client leaves",
    "stall": "`after_tokens` tokens are sent, then nothing until the client leaves",
    "busy": "the request is refused: server busy (503)",
    "slow_unload": "the next unload's memory is released only after 8 simulated seconds",
    "drop_connection": "the connection is closed after `after_tokens` tokens",
    "context_exceeded": "the runner refuses the input as longer than its context (400)",
}
_BEFORE_FIRST_TOKEN = {"crash_before_first_token", "hang", "context_exceeded"}
WHILE_GENERATING = frozenset(_BEFORE_FIRST_TOKEN | {"crash_mid_stream", "silent_truncation", "stall", "drop_connection"})
WHILE_EMBEDDING = frozenset(_BEFORE_FIRST_TOKEN | {"drop_connection"})
_DEFAULT_AFTER_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of failure and the model it hits.

    kind: a key of `KINDS`. model: None hits any model.
    count: how many requests, loads or unloads it will still hit; None is every one until it is cleared.
    after_tokens: how many tokens are sent first.
    """

    kind: str
    model: str | None = None
    count: int | None = 1
    after_tokens: int = 0


class Faults:
    """The faults yet to happen, the oldest first; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, kind: str, *, model: str | None = None, count: int | None = 1, after_tokens: int | None = None) -> Fault:
        """Let a fault of `kind` hit the next `count` requests (loads, unloads) of `model`.

        after_tokens: 3 unless given, for the kinds that name it.
        Raises: ValueError for an unknown kind or an invalid count.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}. Faults: {', '.join(KINDS)}")
        if count is not None and count < 1:
            raise ValueError(f"count must be 1 or more, or null for every request, not {count}")
        least = 1 if kind == "crash_mid_stream" else 0
        if after_tokens is not None and after_tokens < least:
            raise ValueError(f"after_tokens of {kind} must be {least} or more, not {after_tokens}")
        tokens = after_tokens if after_tokens is not None else _DEFAULT_AFTER_TOKENS
        fault = Fault(kind, model, count, 0 if kind in _BEFORE_FIRST_TOKEN else tokens)
        with self._lock:
            self._waiting.append(fault)
        return fault

    def clear(self) -> None:
        """Drop every fault that has not happened yet."""
        with self._lock:
            self._waiting.clear()

    def waiting(self) -> list[dict[str, object]]:
        """Return the faults still to happen, each as its fields."""
        with self._lock:
            return [asdict(fault) for fault in self._waiting]

    def take(self, kinds: Collection[str], model: str) -> Fault | None:
        """Return the oldest fault of these kinds that hits `model`, counted down; None if there is none."""
        with self._lock:
            for place, fault in enumerate(self._waiting):
                if fault.kind in kinds and (fault.model is None or tagged(fault.model) == tagged(model)):
                    if fault.count == 1:
                        del self._waiting[place]
                    elif fault.count is not None:
                        self._waiting[place] = replace(fault, count=fault.count - 1)
                    return fault
        return None
