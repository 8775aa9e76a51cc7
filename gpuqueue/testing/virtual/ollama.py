"""A card and an Ollama on virtual time: loads, reading, writing and memory that comes back; decides nothing of the queue's."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gpuqueue.domain.device import Reading, Resident
from gpuqueue.domain.models import full_name
from gpuqueue.domain.units import from_us
from gpuqueue.testing.virtual.time import Closed, Signal, VirtualTime

# As measured on a card of 8 GB: seconds to start a runner, bytes a second from the page cache, seconds until memory is back.
START_S = (0.5, 1.5)
PAGE_CACHE_BYTES_PER_S = 8e9
RELEASE_S = (0.5, 1.5)
PREFILL_SPEEDUP = 30.0  # of reading over writing; 10 to 30 were measured, the more the smaller the model
STEP_S = 1.0  # of writing, between two reports of what is written
# An assumption: n requests at once write n to the power of 0.6 times as many tokens in all as one does.
BATCHING = 0.6

Kind = Literal["load", "prompt", "decode", "release"]


@dataclass(frozen=True, slots=True)
class VirtualModel:
    """A model: the memory that it takes on the card, and how many tokens of an answer it writes in a second."""

    name: str
    size_bytes: int
    tokens_per_s: float


class Interval(NamedTuple):
    """One use of the card; `owner` is the caller's name of the request, "" for memory that comes back.

    `tokens`: of the whole prompt, though part of it may be known; or those that were written.
    """

    start_s: float
    end_s: float
    kind: Kind
    model: str
    owner: str
    tokens: int = 0


@dataclass(slots=True)
class _Runner:
    """A model that is loaded or loading, with what its prompt cache holds: {request: tokens}, and who waits for a slot."""

    model: VirtualModel
    loaded: Signal
    cache: dict[str, int] = field(default_factory=dict)
    request_count: int = 0
    waiting: deque[Signal] = field(default_factory=deque)
    ends_s: float = math.inf  # when it is unloaded if no request comes

    @property
    def is_busy(self) -> bool:
        return bool(self.request_count) or not self.loaded.is_set()

    @property
    def tokens_per_s(self) -> float:
        """How many tokens each of its requests writes in a second now."""
        return self.model.tokens_per_s / math.pow(max(1, self.request_count), 1.0 - BATCHING)


class VirtualOllama:
    """One server on one card.

    `prompt_cache`: a runner keeps what it has read and written, per request, while it is loaded. `num_parallel`: the requests
    that a runner takes at once; a model's size includes a context for each. One more waits for its turn, and so does one for a
    model that has no room beside those in use, or is one more than `max_loaded`; each of these, and one beside another model's
    request, is counted as an overlap. Its methods are called in threads of `time`.
    """

    def __init__(
        self,
        time: VirtualTime,
        models: Iterable[VirtualModel],
        *,
        total_bytes: int = 8 * 10**9,
        prompt_cache: bool = True,
        num_parallel: int = 1,
        max_loaded: int | None = None,
        seed: int = 1,
    ) -> None:
        self.models = {full_name(model.name): model for model in models}
        self.intervals: list[Interval] = []
        self.overlap_count = 0
        self.peak_bytes = 0
        self.spared_tokens = 0  # of prompts, which were found in a prompt cache
        self.time = time
        self._total_bytes = total_bytes
        self._prompt_cache = prompt_cache
        self._num_parallel = num_parallel
        self._max_loaded = math.inf if max_loaded is None else max_loaded
        self._random = random.Random(seed)
        self._runners: dict[str, _Runner] = {}
        self._releasing_bytes = 0
        self._changed = Signal(time)  # memory is back, or a runner is idle
        self._line: deque[Signal] = deque()  # of requests that need a load
        self._writing: dict[str, Callable[[], None]] = {}

    # --- what is asked of it ---

    def residents(self) -> tuple[Resident, ...]:
        """List the loaded models."""
        sizes = [(name, runner.model.size_bytes) for name, runner in self._runners.items()]
        return tuple(Resident(name, size, size) for name, size in sizes)

    def unload(self, model: str) -> None:
        """Unload a model that no request uses; its memory comes back later."""
        runner = self._runners.get(full_name(model))
        if runner is None or runner.is_busy:
            return
        del self._runners[full_name(model)]
        size, began_s = runner.model.size_bytes, self.time.now_s
        self._releasing_bytes += size
        back_s = began_s + self._random.uniform(*RELEASE_S)

        def back() -> None:
            self._releasing_bytes -= size
            self.intervals.append(Interval(began_s, back_s, "release", runner.model.name, ""))
            self._changed.set()

        self.time.call_at(back_s, back)

    def wait_until_back(self) -> None:
        """Wait until the memory of every unloaded model is back."""
        while self._releasing_bytes:
            self._changed.clear()
            self._changed.wait()

    def report(self) -> None:
        """Report how many tokens each request has so far, as the callers of `answer` asked."""
        for look in list(self._writing.values()):
            look()

    def reading(self) -> Reading:
        """Read the card as a driver would."""
        return Reading(from_us(self.time.wall()), total_bytes=self._total_bytes, free_bytes=self._total_bytes - self._used_bytes)

    @property
    def _used_bytes(self) -> int:
        return self._releasing_bytes + sum(runner.model.size_bytes for runner in self._runners.values())

    # --- requests ---

    def answer(
        self,
        owner: str,
        model: str,
        *,
        prompt_tokens: int,
        output_tokens: int,
        stop: Signal,
        written: Callable[[int], None] = lambda count: None,
        keep_alive_s: float = math.inf,
    ) -> bool:
        """Answer a request; returns False if `stop` was set before the end. `written` gets how many tokens it has so far.

        The model is unloaded `keep_alive_s` after the last request for it.
        """
        runner = self._runner(owner, full_name(model), stop)
        if runner is None:
            return False
        others = (other.is_busy for other in self._runners.values() if other is not runner)
        if runner.request_count >= self._num_parallel or any(others):
            self.overlap_count += 1
        if not self._takes_slot(runner, stop):
            return False
        try:
            return not stop.is_set() and self._answer(runner, owner, prompt_tokens, output_tokens, stop, written)
        finally:
            runner.ends_s = self.time.now_s + keep_alive_s
            if keep_alive_s < math.inf:
                self.time.call_at(runner.ends_s, lambda: self._expire(runner))
            if runner.waiting:
                runner.waiting.popleft().set()  # who has the slot from now on
            else:
                runner.request_count -= 1
                self._changed.set()

    def _expire(self, runner: _Runner) -> None:
        name = full_name(runner.model.name)
        if self._runners.get(name) is runner and self.time.now_s >= runner.ends_s:
            self.unload(name)

    def figures(self, owner: str, since_s: float) -> dict[str, float]:
        """Return the durations that an answer reports of a request, as seconds."""
        spent_s = {kind: 0.0 for kind in ("load", "prompt", "decode")}
        for item in reversed(self.intervals):
            if item.end_s < since_s:
                break
            if item.owner == owner:
                spent_s[item.kind] += item.end_s - item.start_s
        return {
            "load_s": spent_s["load"],
            "prompt_s": spent_s["prompt"],
            "generate_s": spent_s["decode"],
            "total_s": self.time.now_s - since_s,
        }

    def _runner(self, owner: str, name: str, stop: Signal) -> _Runner | None:
        """Return the model's runner, which is loaded if need be, or None if `stop` was set before."""
        while not stop.is_set():
            runner = self._runners.get(name)
            if runner is None:
                self._load_in_turn(owner, name, stop)
            elif runner.loaded.is_set():
                return runner
            else:
                self._wait_for(runner.loaded, stop)  # another request has it loaded, which may be given up
        return None

    def _load_in_turn(self, owner: str, name: str, stop: Signal) -> None:
        """Load a model once those that came before are loaded, and nothing uses what must go for it."""
        turn = Signal(self.time)
        self._line.append(turn)
        try:
            if self._line[0] is not turn:
                self.overlap_count += 1
                self._wait_for(turn, stop)
            if name not in self._runners and not stop.is_set() and self._has_room(self.models[name], stop):
                self._load(owner, name, stop)
        finally:
            self._line.remove(turn)
            if self._line:
                self._line[0].set()

    def _has_room(self, model: VirtualModel, stop: Signal) -> bool:
        """Unload other models until there is room; returns False if `stop` was set before."""
        is_evicting = False
        while not stop.is_set():
            fits = self._used_bytes + model.size_bytes <= self._total_bytes and len(self._runners) < self._max_loaded
            if fits and not (is_evicting and self._releasing_bytes):
                return True
            is_evicting = True
            for other in list(self._runners):
                self.unload(other)
            self._changed.clear()
            self._wait_for(self._changed, stop)
        return False

    def _load(self, owner: str, name: str, stop: Signal) -> None:
        model = self.models[name]
        runner = self._runners[name] = _Runner(model, Signal(self.time))
        self.peak_bytes = max(self.peak_bytes, self._used_bytes)
        load_s = self._random.uniform(*START_S) + model.size_bytes / PAGE_CACHE_BYTES_PER_S
        is_stopped = self._use(owner, model, "load", load_s, stop) < load_s
        runner.loaded.set()
        if is_stopped:
            self.unload(name)

    def _takes_slot(self, runner: _Runner, stop: Signal) -> bool:
        """Take one of a runner's slots, in turn; returns False if `stop` was set before."""
        if runner.request_count < self._num_parallel:
            runner.request_count += 1
            return True
        turn = Signal(self.time)
        runner.waiting.append(turn)
        self._wait_for(turn, stop)
        if not turn.is_set():
            runner.waiting.remove(turn)
        return turn.is_set()

    def _wait_for(self, *signals: Signal) -> None:
        """Wait until one of some signals is set."""
        woken = Signal(self.time)
        for signal in signals:
            signal.then(woken.set)
        woken.wait()

    def _answer(
        self,
        runner: _Runner,
        owner: str,
        prompt_tokens: int,
        output_tokens: int,
        stop: Signal,
        written: Callable[[int], None],
    ) -> bool:
        model, known = runner.model, min(prompt_tokens, runner.cache.get(owner, 0))
        self.spared_tokens += known
        prompt_s = (prompt_tokens - known) / (PREFILL_SPEEDUP * runner.tokens_per_s)
        if self._use(owner, model, "prompt", prompt_s, stop, prompt_tokens) < prompt_s:
            return False
        began_s, count = self.time.now_s, 0
        since_s, before, rate = began_s, 0, runner.tokens_per_s

        def look() -> None:
            nonlocal count, since_s, before, rate
            count = min(output_tokens, before + round((self.time.now_s - since_s) * rate))
            if rate != runner.tokens_per_s:  # another request has begun or ended since the last look
                since_s, before, rate = self.time.now_s, count, runner.tokens_per_s
            written(count)

        self._writing[owner] = look
        try:
            step_s = 1 / rate  # the first one is told of when it comes
            while count < output_tokens and not stop.is_set():
                stop.wait(min(step_s, (output_tokens - count) / rate))
                look()
                step_s = math.inf if self._num_parallel == 1 else STEP_S
        except Closed:
            count = before + round((self.time.now_s - since_s) * rate)
            self.intervals.append(Interval(began_s, self.time.now_s, "decode", model.name, owner, count))
            raise
        del self._writing[owner]
        self.intervals.append(Interval(began_s, self.time.now_s, "decode", model.name, owner, count))
        if self._prompt_cache:
            runner.cache[owner] = prompt_tokens + count
        return count == output_tokens

    def _use(self, owner: str, model: VirtualModel, kind: Kind, duration_s: float, stop: Signal, tokens: int = 0) -> float:
        """Use the card for some time, or until `stop` is set; returns for how long."""
        began_s = self.time.now_s
        used_s = self.time.now_s - began_s if stop.wait(duration_s) else duration_s
        self.intervals.append(Interval(began_s, self.time.now_s, kind, model.name, owner, tokens))
        return used_s
