"""A virtual Ollama loads, reads, writes and gives memory back in the times that it says, and stops when it is told."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from gpuqueue.testing.virtual import Signal, VirtualModel, VirtualOllama, VirtualTime
from gpuqueue.testing.virtual.ollama import PREFILL_SPEEDUP

PROMPT_S = 1000 / (PREFILL_SPEEDUP * 50)
BIG = VirtualModel("big", 6 * 10**9, tokens_per_s=50.0)
SMALL = VirtualModel("small:latest", 3 * 10**9, tokens_per_s=100.0)


class Desk:
    """A card with two models that do not fit together, and who asks them."""

    def __init__(self, **options: Any) -> None:
        self.time = VirtualTime()
        self.ollama = VirtualOllama(self.time, [BIG, SMALL], **options)
        self.answered: list[tuple[str, bool, float]] = []

    def ask(self, owner: str, model: VirtualModel, *, at_s: float = 0.0, stop_at_s: float | None = None) -> list[int]:
        """Ask for 500 tokens after a prompt of 1,000; returns where the counts of written tokens will be."""
        stop, counts = Signal(self.time), []

        def work() -> None:
            ok = self.ollama.answer(
                owner, model.name, prompt_tokens=1000, output_tokens=500, stop=stop, written=lambda count: counts.append(count)
            )
            self.answered.append((owner, ok, self.time.now_s))

        self.time.call_at(at_s, lambda: self.time.spawn(work))
        if stop_at_s is not None:
            self.time.call_at(stop_at_s, stop.set)
        return counts

    def spent(self, owner: str, kind: str) -> list[float]:
        return [item.end_s - item.start_s for item in self.ollama.intervals if (item.owner, item.kind) == (owner, kind)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_request_loads_its_model_reads_the_prompt_and_writes_the_answer(desk: Desk) -> None:
    counts = desk.ask("a", BIG)
    desk.time.run()
    (load_s,) = desk.spent("a", "load")
    assert 0.75 + 0.5 <= load_s <= 0.75 + 1.5
    assert desk.spent("a", "prompt") == [pytest.approx(PROMPT_S)]
    assert desk.spent("a", "decode") == [pytest.approx(10.0)]
    assert desk.answered == [("a", True, pytest.approx(load_s + PROMPT_S + 10.0))]
    assert counts == [1, 500], "the first token, and all"
    figures = desk.ollama.figures("a", 0.0)
    assert figures == {
        "load_s": load_s,
        "prompt_s": pytest.approx(PROMPT_S),
        "generate_s": pytest.approx(10.0),
        "total_s": desk.time.now_s,
    }
    assert [resident.model for resident in desk.ollama.residents()] == ["big:latest"]


def test_another_model_waits_until_the_memory_of_the_first_is_back(desk: Desk) -> None:
    desk.ask("a", BIG)
    desk.ask("b", SMALL, at_s=60.0)
    desk.time.run()
    released = next(item for item in desk.ollama.intervals if item.kind == "release")
    loaded = next(item for item in desk.ollama.intervals if (item.owner, item.kind) == ("b", "load"))
    assert (released.model, released.start_s) == ("big", 60.0)
    assert loaded.start_s == released.end_s
    assert desk.ollama.peak_bytes == BIG.size_bytes
    reading = desk.ollama.reading()
    assert (reading.total_bytes, reading.free_bytes) == (8 * 10**9, 5 * 10**9)


@pytest.mark.parametrize(("stop_at_s", "kind"), [(0.5, "load"), (2.0, "prompt"), (7.0, "decode")])
def test_a_request_that_is_stopped_ends_at_once(desk: Desk, stop_at_s: float, kind: str) -> None:
    counts = desk.ask("a", BIG, stop_at_s=stop_at_s)
    desk.time.run(stop_at_s)
    assert desk.answered == [("a", False, stop_at_s)]
    last = next(item for item in reversed(desk.ollama.intervals) if item.owner == "a")
    assert (last.kind, last.end_s) == (kind, stop_at_s)
    assert last.tokens == {"load": 0, "prompt": 1000, "decode": counts[-1] if counts else 0}[kind]
    assert bool(desk.ollama.residents()) is (kind != "load"), "what was not loaded to its end is given up"


@pytest.mark.parametrize(("prompt_cache", "read_again_s"), [(True, 0.0), (False, PROMPT_S)])
def test_what_was_read_and_written_is_kept_while_the_model_stays(prompt_cache: bool, read_again_s: float) -> None:
    desk = Desk(prompt_cache=prompt_cache)
    desk.ask("a", BIG, stop_at_s=7.0)
    desk.ask("a", BIG, at_s=20.0)
    desk.time.run()
    assert desk.spent("a", "prompt") == [pytest.approx(PROMPT_S), pytest.approx(read_again_s)]
    desk.ollama.unload(BIG.name)
    desk.ask("a", BIG, at_s=60.0)
    desk.time.run()
    assert desk.spent("a", "prompt")[-1] == pytest.approx(PROMPT_S), "it is lost when the model is unloaded"


def test_a_model_in_use_is_not_unloaded_and_two_at_once_are_counted(desk: Desk) -> None:
    desk.ask("a", BIG)
    desk.time.call_at(5.0, lambda: desk.ollama.unload(BIG.name))
    desk.time.run(6.0)
    assert [resident.model for resident in desk.ollama.residents()] == ["big:latest"]
    assert desk.ollama.overlap_count == 0
    desk.ask("b", BIG, at_s=6.0)
    desk.time.run()
    assert desk.ollama.overlap_count == 1


def test_two_requests_that_a_model_takes_at_once_slow_each_other_down_and_are_no_overlap() -> None:
    desk = Desk(num_parallel=2)
    first, second = desk.ask("a", BIG), desk.ask("b", BIG, at_s=1.0)
    desk.time.run()
    assert desk.spent("b", "load") == [], "it waits for the load that has begun"
    assert desk.ollama.overlap_count == 0
    assert first[-1] == second[-1] == 500
    ends_s = {owner: at_s for owner, ok, at_s in desk.answered if ok}
    load_s, alone_s = desk.spent("a", "load")[0], 11.0
    assert ends_s["a"] - load_s == pytest.approx(alone_s * 2**0.4, abs=1.0)
    assert ends_s["b"] - load_s == pytest.approx(alone_s * 2**0.4, abs=1.0)


def ends(desk: Desk) -> list[str]:
    desk.time.run()
    return [owner for owner, _, _ in desk.answered]


def test_requests_of_one_model_are_answered_one_after_the_other_as_they_came() -> None:
    desk = Desk()
    for number, owner in enumerate("abc"):
        desk.ask(owner, BIG, at_s=float(number))
    assert ends(desk) == ["a", "b", "c"]
    starts_s = [item.start_s for item in desk.ollama.intervals if item.kind == "prompt"]
    assert starts_s[1:] == [end_s for _, _, end_s in desk.answered[:2]]
    assert desk.ollama.overlap_count == 2


def test_a_request_for_another_model_waits_while_ones_for_the_loaded_model_come_and_go_before_it() -> None:
    desk = Desk(max_loaded=1)
    desk.ask("a", BIG)
    desk.ask("b", SMALL, at_s=5.0)
    desk.ask("c", BIG, at_s=6.0)
    assert ends(desk) == ["a", "c", "b"]
    released = next(item for item in desk.ollama.intervals if item.kind == "release")
    assert released.start_s == desk.answered[1][2]
    assert desk.ollama.peak_bytes == BIG.size_bytes


@pytest.mark.parametrize(("max_loaded", "peak_bytes"), [(None, 4 * 10**9), (1, 3 * 10**9)])
def test_one_more_model_than_may_be_loaded_waits_though_there_is_memory(max_loaded: int | None, peak_bytes: int) -> None:
    time, other = VirtualTime(), VirtualModel("other:latest", 10**9, tokens_per_s=50.0)
    ollama = VirtualOllama(time, [SMALL, other], max_loaded=max_loaded)

    def ask(model: VirtualModel) -> None:
        ollama.answer(model.name, model.name, prompt_tokens=1, output_tokens=9, stop=Signal(time))

    for model in (SMALL, other):
        time.spawn(partial(ask, model))
    time.run()
    assert ollama.peak_bytes == peak_bytes


def test_a_request_that_is_stopped_while_it_waits_gives_its_place_to_the_next() -> None:
    desk = Desk(max_loaded=1)
    desk.ask("a", BIG)
    desk.ask("b", BIG, at_s=1.0, stop_at_s=2.5)
    desk.ask("c", SMALL, at_s=1.0, stop_at_s=4.0)
    desk.ask("d", SMALL, at_s=1.5)
    desk.ask("e", BIG, at_s=2.0)
    desk.time.run()
    assert [(owner, ok) for owner, ok, _ in desk.answered] == [("b", False), ("c", False), ("a", True), ("e", True), ("d", True)]
