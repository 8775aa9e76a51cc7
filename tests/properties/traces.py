"""Draws queues, models and jobs of a card, and says until when each job must have ended, however its queues yield."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from gpuqueue.decisions.policies.preemption import THROWN_S
from gpuqueue.testing.virtual.ollama import PAGE_CACHE_BYTES_PER_S, PREFILL_SPEEDUP, RELEASE_S, START_S
from tests.benchmarks.scheduling.hours import GEMMA, NOMIC, QWEN, Arrival, Hour

SPAN_S = 600.0  # in which jobs come
# From the end of one job to the beginning of the next, with another model.
SWITCH_S = RELEASE_S[1] + START_S[1] + GEMMA.size_bytes / PAGE_CACHE_BYTES_PER_S
DECIDED_S = 0.5  # until a decision is looked at again, and its attempt has ended
PAUSE, PAUSED_UNTIL_S = ["18:01-18:05"], 300.0  # virtual time begins at 18:00


@dataclass(frozen=True, slots=True)
class Trace:
    """What comes to which queues; a queue yields only to earlier ones. `restarts`: models whose answers are not continued."""

    queues: Mapping[str, Mapping[str, Any]]
    gpu: Mapping[str, Any]
    restarts: frozenset[str]
    arrivals: tuple[Arrival, ...]
    prompt_cache: bool
    seed: int

    @property
    def affinity_s(self) -> float:
        return float(str(self.gpu.get("affinity", "120s")).removesuffix("s"))

    def hour(self) -> Hour:
        """Make an hour of it that is long enough for each job to end."""

        def draw(_: random.Random) -> Iterator[Arrival]:
            yield from self.arrivals

        models = {name: {"resume": "restart"} for name in self.restarts}
        return Hour("drawn", "", draw, self.queues, self.gpu, models, length_s=max(self.ends_s()) + 60.0)

    def ends_s(self) -> list[float]:
        """Say when each job must have ended, in the order of `arrivals`.

        A card with work is never idle but for switches, so whatever the order, all that is there is done when a card has done it
        that takes the jobs as they come and spends on each what it can cost: itself, two switches and what a job that it stops
        reads again. Added is what may be thrown away. A job of a queue that yields to none waits only for those that do not
        yield to it, and once for one that runs already.
        """
        everything = self._busy_until(self.arrivals, self._thrown_s(self.arrivals))
        found = []
        for arrival in self.arrivals:
            bound_s = everything[arrival]
            if not self.queues[arrival.queue].get("yields_to") and not self._has_pause:
                first = [item for item in self.arrivals if arrival.queue not in self._yields(item.queue)]
                behind = [item for item in self.arrivals if item not in first]
                bound_s = min(bound_s, self._busy_until(first, self._blocked_s(behind) + self._thrown_s(first))[arrival])
            found.append(bound_s)
        return found

    @property
    def _has_pause(self) -> bool:
        return any("pause" in queue for queue in self.queues.values())

    def _yields(self, queue: str) -> list[str]:
        return list(self.queues[queue].get("yields_to", ()))

    def _busy_until(self, arrivals: Iterable[Arrival], before_s: float) -> dict[Arrival, float]:
        """Say until when a card is busy that has some work before it turns to what comes."""
        ends: dict[Arrival, float] = {}
        together: list[Arrival] = []
        busy_s = 0.0
        again_s = max((self._reading_s(item) + item.output_tokens / _read_rate(item) for item in self.arrivals), default=0.0)
        for arrival in sorted(arrivals, key=lambda item: item.at_s):
            at_s = max(arrival.at_s, PAUSED_UNTIL_S if self._has_pause else 0.0)
            if at_s > busy_s:
                together = []
            busy_s = max(busy_s, at_s + before_s)  # the card may have been idle, and turned to what comes before
            together.append(arrival)
            busy_s += self._alone_s(arrival) + again_s + 2 * SWITCH_S + DECIDED_S
            ends.update(dict.fromkeys(together, busy_s))
        return ends

    def _blocked_s(self, behind: Iterable[Arrival]) -> float:
        """Say how long one job that runs already may go on."""
        longest_s = 0.0
        for item in behind:
            queue = self.queues[item.queue]
            stays = queue.get("yield_mode") == "drain" or item.model is NOMIC
            if not stays and item.model.name in self.restarts:
                # Protected only once so much is thrown away, which these jobs may not amount to.
                stays = self._thrown_s(self.arrivals) >= THROWN_S
            soon_s = sum(
                float(str(queue.get(key, default)).removesuffix("s")) for key, default in (("min_run", 0), ("nearly_done", 1))
            )
            # One that goes on first where it was stopped before reads its prompt, and writes for as long as that cost.
            start_s = SWITCH_S + self._reading_s(item) + item.output_tokens / _read_rate(item)
            longest_s = max(longest_s, SWITCH_S + self._alone_s(item) if stays else soon_s + 2 * start_s + DECIDED_S)
        return longest_s + SWITCH_S

    def _thrown_s(self, arrivals: Iterable[Arrival]) -> float:
        """Say how much work may be thrown away: what a job stops, for each that comes, but so much in an hour at most."""
        restarts = [self._alone_s(item) for item in arrivals if item.model.name in self.restarts or item.model is NOMIC]
        span_s = SPAN_S + sum(self._alone_s(item) + 2 * SWITCH_S for item in self.arrivals)
        hours = 1 + int(span_s / 3600)
        return min(THROWN_S * hours, (max(restarts, default=0.0) + SWITCH_S) * len(self.arrivals))

    def _alone_s(self, arrival: Arrival) -> float:
        return self._reading_s(arrival) + arrival.output_tokens / arrival.model.tokens_per_s

    def _reading_s(self, arrival: Arrival) -> float:
        return arrival.prompt_tokens / _read_rate(arrival)


def _read_rate(arrival: Arrival) -> float:
    return PREFILL_SPEEDUP * arrival.model.tokens_per_s


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    names = ["first", "second", "third"][: draw(st.integers(1, 3))]
    queues: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        queue: dict[str, Any] = {}
        yields_to = draw(st.lists(st.sampled_from(names[:number]), unique=True)) if number else []
        # Also to those that these yield to: a queue that waits itself is no work that others would yield to.
        yields_to = [
            other
            for other in names
            if other in {*yields_to, *(far for near in yields_to for far in queues[near].get("yields_to", ()))}
        ]
        if yields_to:
            queue["yields_to"] = yields_to
            queue.update(draw(st.sampled_from([{}, {}, {"yield_mode": "drain"}, {"min_run": "10s"}, {"nearly_done": "5s"}])))
        if draw(st.integers(0, 5)) == 5:
            queue["pause"] = PAUSE
        queue.update(draw(st.sampled_from([{}, {"concurrency": 2}])))
        queues[name] = queue
    gpu = {
        **draw(st.sampled_from([{}, {"affinity": "0s"}, {"affinity": "30s"}])),
        **draw(st.sampled_from([{}, {"keep_warm": "30s"}, {"keep_warm": "1h"}])),
        **draw(st.sampled_from([{}, {"max_models": 2}])),
    }
    arrivals: list[Arrival] = []
    for _ in range(draw(st.integers(1, 16))):
        model = draw(st.sampled_from([GEMMA, GEMMA, QWEN, NOMIC]))
        output_s = draw(st.sampled_from([0.4, 3.0, 10.0, 40.0, 120.0]))
        arrivals.append(
            Arrival(
                float(draw(st.integers(0, int(SPAN_S)))) * draw(st.sampled_from([0.0, 0.1, 1.0])) + 0.001 * len(arrivals),
                draw(st.sampled_from(names)),
                model,
                draw(st.sampled_from([20, 300, 1500])),
                0 if model is NOMIC else max(1, round(output_s * model.tokens_per_s)),
            )
        )
    restarts = draw(st.sets(st.sampled_from([GEMMA.name, QWEN.name])))
    ordered = tuple(sorted(arrivals, key=lambda arrival: arrival.at_s))
    return Trace(queues, gpu, frozenset(restarts), ordered, draw(st.booleans()), draw(st.integers(1, 1000)))
