"""Gathers this worker's observations of its jobs until they are written to the store; decides nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from gpuqueue.domain import estimates
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.estimates import Observation, model_key, work_key
from gpuqueue.domain.job import Lease
from gpuqueue.worker.log import LOADED_S
from gpuqueue.worker.site import Site
from gpuqueue.worker.turns import Turns

MOST = 1e15  # of a figure of an answer; anything larger is not one
MOST_KEPT = 1000  # observations that wait for the store


class Observations:
    """Observations from any thread, written by `tell` in one transaction."""

    def __init__(self, site: Site) -> None:
        self._store = site.store
        self._clock = site.clock
        self.turns = Turns(site.clock)
        self._observations: list[Observation] = []
        self._runs: list[tuple[str, str, str, float]] = []  # (queue, task, model, seconds)
        self._lock = threading.Lock()

    def learn(self, kind: str, key: str, value: float) -> None:
        """Add an observation; dropped when MOST_KEPT are waiting, as those are enough."""
        with self._lock:
            if len(self._observations) < MOST_KEPT:
                self._observations.append(Observation(kind, key, value))

    def of_run(self, lease: Lease, run_s: float) -> None:
        """Record a completed attempt's run time; turned into an observation later, as thousands a second may complete."""
        with self._lock:
            if len(self._runs) < MOST_KEPT:
                self._runs.append((lease.queue, lease.task, lease.model, run_s))

    def of_turn(self, lease: Lease) -> None:
        """Record how long a completed job on a device took in turn."""
        key = work_key(lease.queue, lease.task, lease.model)
        turn_s, gap_s = self.turns.ended(lease.queue, key)
        if turn_s is not None:
            self.learn(estimates.TURN, key, turn_s)
        if gap_s is not None:
            self.learn(estimates.GAP, key, gap_s)

    def of_answer(self, lease: Lease, answer: Mapping[str, Any], memory_options: Mapping[str, Any]) -> None:
        """Record the figures of a model's answer: how fast it loads, reads and writes, and how much it writes."""
        model = model_key(lease.model)
        load_s, prompt_s, generate_s, total_s = (_number(answer, f"{name}_s") for name in ("load", "prompt", "generate", "total"))
        prompt_tokens, output_tokens, continued_tokens = (
            int(_number(answer, f"{name}_tokens")) for name in ("prompt", "output", "continued")
        )
        own_tokens = output_tokens - continued_tokens
        if load_s > LOADED_S:
            self.learn(estimates.LOAD, model_key(lease.model, memory_options), load_s)
        if "spilled_bytes" in answer:
            self.learn(estimates.SPILLED, model_key(lease.model, memory_options), _number(answer, "spilled_bytes"))
        if prompt_tokens and prompt_s:
            self.learn(estimates.PROMPT_RATE, model, prompt_tokens / prompt_s)
        if output_tokens and (generate_s or continued_tokens):
            self.learn(estimates.OUTPUT, work_key(lease.queue, lease.task, lease.model), output_tokens)
        if own_tokens > 0 and generate_s:
            self.learn(estimates.OUTPUT_RATE, model, own_tokens / generate_s)
            # What earlier attempts wrote took as long for each token.
            generate_s *= output_tokens / own_tokens
        if not continued_tokens or own_tokens > 0:
            # Of an embedding, only the whole is reported.
            self.of_run(lease, prompt_s + generate_s or max(0.0, total_s - load_s))

    def tell(self) -> None:
        """Write the observations; keeps them when the store cannot be written now."""
        with self._lock:
            observations, self._observations = self._observations, []
            runs, self._runs = self._runs, []
        observations += [Observation(estimates.RUN, work_key(queue, task, model), run_s) for queue, task, model, run_s in runs]
        if not observations:
            return
        try:
            self._store.estimates.learn(observations, now_us=self._clock.wall())
        except StoreError:
            with self._lock:
                self._observations = (observations + self._observations)[:MOST_KEPT]
            raise


def _number(answer: Mapping[str, Any], name: str) -> float:
    """Return a figure of an answer, 0 without one; a task's own result may have anything under this name."""
    found = answer.get(name)
    return float(found) if isinstance(found, int | float) and 0 <= found < MOST else 0.0
