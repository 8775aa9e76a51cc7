from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import (
    FAULT_KINDS,
    GEMMA4_E4B,
    NOMIC_EMBED_TEXT,
    Faults,
    ModelSpec,
    OllamaSimulator,
    expected_answer,
    expected_embedding,
)
from gpuqueue.simulators.ollama.__main__ import main
from gpuqueue.simulators.ollama.options import runner_options
from gpuqueue.simulators.ollama.scheduler import Resident
from gpuqueue.testing.waiting import DEADLINE_S, wait_until
from tests.processes import started

GEMMA = "gemma4:e4b"
NOMIC = "nomic-embed-text"
OTHER = ModelSpec("other", 1_000_000_000, answer_token_count=10)
BIG = ModelSpec("big", 6_000_000_000, answer_token_count=10)
MODELS = (GEMMA4_E4B, NOMIC_EMBED_TEXT, OTHER, BIG)
BUSY = {"error": "server busy, please try again.  maximum pending requests exceeded"}
FAST = 200.0

Ask = Callable[..., httpx.Response]


class Bench:
    """A simulator with a client, and threads for requests that wait."""

    def __init__(self, ollama: OllamaSimulator) -> None:
        self.ollama = ollama
        self.card = ollama.card
        # Without certificates, which plain HTTP does not need, a client is made ten times faster.
        self.client = httpx.Client(base_url=ollama.url, timeout=DEADLINE_S, verify=False)
        self._threads = ThreadPoolExecutor(16)

    def close(self) -> None:
        self.ollama.stop()
        self._threads.shutdown()
        self.client.close()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def generate(self, model: str = GEMMA, prompt: str = "Revise this", **body: Any) -> httpx.Response:
        return self.post("/api/generate", model=model, prompt=prompt, **body)

    def answer(self, model: str = GEMMA, prompt: str = "Revise this", **body: Any) -> dict[str, Any]:
        answered = self.generate(model, prompt, stream=False, **body)
        assert answered.status_code == 200, answered.text
        read: dict[str, Any] = answered.json()
        return read

    def later(self, model: str, prompt: str = "Revise this", **body: Any) -> Future[httpx.Response]:
        return self._threads.submit(self.generate, model, prompt, **body)

    def load(self, model: str, **body: Any) -> None:
        if "embed" in model:
            self.post("/api/embed", model=model, **body)
        else:
            assert self.post("/api/generate", model=model, **body).json()["done_reason"] == "load"

    def unload(self, model: str) -> httpx.Response:
        return self.post("/api/generate", model=model, keep_alive=0)

    def residents(self) -> dict[str, dict[str, Any]]:
        return {model["name"]: model for model in self.client.get("/api/ps").json()["models"]}

    def generates(self) -> bool:
        """Whether a model computes an answer now; a load is not yet one."""
        return self.card.load_count == len(self.loads()) and self.card.computing_now != ()

    def is_leaving(self, name: str) -> bool:
        """Whether a model that was to stay for ever has been told to go."""
        return bool(self.residents()[name]["expires_at"] < "2300")

    def loads(self) -> list[str]:
        return [entry.owner.partition("#")[0] for entry in self.card.compute_log if entry.kind == "load"]

    def open(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Send a request on a connection of its own, to be read or closed at will."""
        text = json.dumps(body).encode()
        host, port = self.ollama.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(text), text))
        return connection


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST), MODELS).start())
    yield bench
    bench.close()


@pytest.fixture
def alone() -> Iterator[Bench]:
    """One model at a time and one request in the queue, memory back at once."""
    card = SimulatedCard(speed=FAST, release_delay_s=(0, 0))
    bench = Bench(OllamaSimulator(card, MODELS, max_loaded=1, max_queue=1).start())
    yield bench
    bench.close()


@pytest.fixture
def slow() -> Iterator[Bench]:
    """A card on which a load lasts half a minute, to be interrupted."""
    card = SimulatedCard(speed=0.1, release_delay_s=(0, 0))
    bench = Bench(OllamaSimulator(card, MODELS, max_queue=1).start())
    yield bench
    bench.close()


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


# Answers


def test_a_stream_says_the_expected_answer_token_by_token(bench: Bench) -> None:
    said = lines(bench.generate(options={"num_predict": 20}))

    assert len(said) == 21
    assert "".join(line["response"] for line in said) == expected_answer(GEMMA, "Revise this", 20)
    assert [line["done"] for line in said] == [False] * 20 + [True]
    assert (said[-1]["done_reason"], said[-1]["eval_count"]) == ("length", 20)


def test_an_answer_depends_on_prompt_and_model_and_is_repeated(bench: Bench) -> None:
    first = bench.answer(prompt="one")["response"]
    assert bench.answer(prompt="one", options={"temperature": 1.5, "seed": 7})["response"] == first
    assert bench.answer(prompt="two")["response"] != first
    assert bench.answer("other", "one", options={"num_predict": 5})["response"] != expected_answer(GEMMA, "one", 5)
    assert expected_answer(GEMMA, "one", 1) != expected_answer(GEMMA, "two", 1)


def test_without_num_predict_the_model_has_its_own_length(bench: Bench) -> None:
    answered = bench.answer("other")
    assert (answered["eval_count"], answered["done_reason"]) == (10, "stop")
    assert answered["response"] == expected_answer(OTHER, "Revise this")


def test_a_chat_is_answered_from_all_its_messages(bench: Bench) -> None:
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Revise <this> & that"}]
    answered = bench.post("/api/chat", model=GEMMA, messages=messages, stream=False, options={"num_predict": 9})

    assert b"\\u003cthis\\u003e \\u0026 that" in answered.content
    assert answered.json()["message"] == {"role": "assistant", "content": expected_answer(GEMMA, messages, 9)}


def test_words_that_are_not_the_models_own_are_answered_anew(bench: Bench) -> None:
    messages = [{"role": "user", "content": "Revise this"}, {"role": "assistant", "content": "Something else"}]
    answered = bench.post("/api/chat", model=GEMMA, messages=messages, stream=False, options={"num_predict": 7}).json()
    assert answered["message"]["content"] == expected_answer(GEMMA, messages, 7)
    assert answered["message"]["content"].startswith("Answer to ")


def test_a_raw_prompt_is_continued_where_it_ends(bench: Bench) -> None:
    partial = expected_answer(GEMMA, "Revise this", 4)
    answered = bench.answer(prompt=f"Revise this{partial}", raw=True, options={"num_predict": 3})

    assert partial + answered["response"] == expected_answer(GEMMA, "Revise this", 7)
    assert "context" not in answered


def test_a_system_text_changes_the_answer_and_an_earlier_context_is_kept(bench: Bench) -> None:
    answered = bench.answer("other", "hi", system="Be short.", context=[1, 2], options={"num_predict": 2})
    assert answered["response"] == expected_answer("other", "Be short.\n\nhi", 2)
    assert answered["context"][:2] == [1, 2]
    assert len(answered["context"]) == 4


def test_embeddings_are_unit_vectors_of_their_input(bench: Bench) -> None:
    answered = bench.post("/api/embed", model=NOMIC, input=["one", "two"]).json()["embeddings"]
    cut = bench.post("/api/embed", model=NOMIC, input="one", dimensions=8).json()["embeddings"]

    assert answered == [expected_embedding(NOMIC_EMBED_TEXT, text) for text in ("one", "two")]
    assert answered[0] != answered[1]
    assert len(answered[0]) == 768
    assert cut == [expected_embedding(NOMIC_EMBED_TEXT, "one", 8)]
    assert all(sum(value**2 for value in vector) == pytest.approx(1) for vector in (*answered, *cut))


def test_a_model_that_can_think_does_so_before_it_answers(bench: Bench) -> None:
    said = lines(
        bench.post("/api/chat", model=GEMMA, messages=[{"role": "user", "content": "x"}], think=True, options={"num_predict": 2})
    )
    thoughts = [line["message"].get("thinking", "") for line in said]

    assert [bool(thought) for thought in thoughts] == [True] * 4 + [False] * 3
    assert said[-1]["eval_count"] == 6


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_beyond_the_context_is_cut_or_refused(bench: Bench, stream: bool) -> None:
    prompt = "word " * 2000
    options = {"num_ctx": 100, "num_predict": 1}
    assert bench.answer(prompt=prompt, options=options)["prompt_eval_count"] == 100

    refused = bench.generate(prompt=prompt, options=options, truncate=False, stream=stream)
    assert refused.status_code == 400
    assert json.loads(refused.json()["error"])["error"]["n_ctx"] == 100


def test_show_tells_of_size_and_capabilities(bench: Bench) -> None:
    shown = bench.post("/api/show", model=GEMMA).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["details"]["quantization_level"] == "Q4_K_M"
    assert shown["model_info"]["gemma4.context_length"] == 131_072
    assert bench.post("/api/show", name="other").json()["model_info"]["llama.block_count"] == 32


def test_tags_version_and_pull(bench: Bench) -> None:
    assert [model["name"] for model in bench.client.get("/api/tags").json()["models"]] == [
        GEMMA,
        f"{NOMIC}:latest",
        "other:latest",
        "big:latest",
    ]
    assert bench.client.get("/api/version").json() == {"version": "0.33.0"}
    assert lines(bench.post("/api/pull", model=GEMMA))[-1] == {"status": "success"}
    assert lines(bench.post("/api/pull", model="nope"))[-1] == {"error": "pull model manifest: file does not exist"}
    assert bench.post("/api/pull", model="nope", stream=False).status_code == 500


def test_a_name_with_and_without_its_tag_is_one_model(bench: Bench) -> None:
    bench.answer("other:latest")
    bench.answer("other")
    assert bench.loads() == ["other:latest"]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"options": {"temperature": "hot"}}, 500, 'option "temperature" must be of type float32'),
        ({"options": {"use_mmap": 1}}, 500, 'option "use_mmap" must be of type boolean'),
        ({"options": {"stop": "x"}}, 500, 'option "stop" must be of type array'),
        ({"options": {"num_ctx": True}}, 500, 'option "num_ctx" must be of type integer'),
        ({"raw": True, "system": "x"}, 400, "raw mode does not support template, system, or context"),
        ({"suffix": "x"}, 400, "registry.ollama.ai/library/gemma4:e4b does not support insert"),
        ({"keep_alive": "5x"}, 400, 'time: unknown unit "x" in duration "5x"'),
        ({"keep_alive": {}}, 400, "Unsupported type: 'map[string]interface {}'"),
        ({"context": ["a"]}, 400, "json: cannot unmarshal string into Go struct field GenerateRequest.context of type int"),
        ({"stream": "yes"}, 400, "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool"),
    ],
)
def test_wrong_requests_beyond_the_transcripts(bench: Bench, body: dict[str, Any], status: int, error: str) -> None:
    refused = bench.generate(**body)
    assert (refused.status_code, refused.json()) == (status, {"error": error})
    assert bench.card.load_count == 0


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[]", "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
        ('{"model" 1}', "invalid character '1' after object key"),
        ('{"model": oops}', "invalid character 'o' looking for beginning of value"),
        ('{"model": "x" "y"}', "invalid character '\"' after object key:value pair"),
        ('{"model": "x', "unexpected EOF"),
        ('{"model": NaN}', "invalid character 'N' looking for beginning of value"),
    ],
)
def test_broken_json_is_named_as_go_names_it(bench: Bench, text: str, error: str) -> None:
    assert bench.client.post("/api/generate", content=text).json() == {"error": error}


@pytest.mark.parametrize("keep_alive", ["1h30m", "1.5h", -1, "-1s", 3600, None])
def test_every_way_to_write_a_stay_is_read(bench: Bench, keep_alive: object) -> None:
    bench.answer("other", keep_alive=keep_alive)
    expires_at = bench.residents()["other:latest"]["expires_at"]
    assert expires_at.startswith("23") == (keep_alive in (-1, "-1s"))


# Loading, room, and leaving


def test_a_cold_model_loads_for_as_long_as_its_size_takes_and_a_warm_one_not_at_all(bench: Bench) -> None:
    cold = bench.answer("other")
    warm = bench.answer("other")
    loads = [entry for entry in bench.card.compute_log if entry.kind == "load"]

    assert len(loads) == 1
    assert loads[0].ended_s - loads[0].started_s >= (0.5 + 1.0e9 / 2.5e9) / FAST
    assert cold["load_duration"] >= (0.5 + 1.0e9 / 2.5e9) / FAST * 1e9
    assert cold["total_duration"] >= cold["load_duration"] + cold["eval_duration"]
    assert warm["load_duration"] > 0


def test_tokens_take_the_time_of_the_model_at_the_cards_speed(bench: Bench) -> None:
    assert bench.answer("other")["eval_duration"] >= 10 / 60.0 / FAST * 1e9


def test_a_resident_is_listed_with_its_sizes_and_context(bench: Bench) -> None:
    bench.load(GEMMA)
    bench.load(NOMIC)
    gemma, nomic = bench.residents()[GEMMA], bench.residents()[f"{NOMIC}:latest"]

    assert (gemma["size"], gemma["size_vram"], gemma["context_length"]) == (4_500_000_000, 4_500_000_000, 4096)
    assert (nomic["size"], nomic["context_length"]) == (500_000_000, 2048)
    assert bench.card.used_bytes == bench.card.reserved_bytes + 5_000_000_000


def test_a_larger_context_needs_more_memory(bench: Bench) -> None:
    bench.load(GEMMA, options={"num_ctx": 8192})
    assert bench.residents()[GEMMA]["size"] == 4_500_000_000 + 4096 * 16_384
    assert bench.card.held_bytes(f"{GEMMA}#1") == 4_500_000_000 + 4096 * 16_384


@pytest.mark.parametrize(
    "options", [{"num_ctx": 2048}, {"num_gpu": 10}, {"num_batch": 64}, {"num_thread": 2}, {"main_gpu": 1}, {"use_mmap": False}]
)
def test_an_option_that_sizes_memory_reloads_the_model(bench: Bench, options: dict[str, object]) -> None:
    bench.load("other")
    bench.load("other", options=options)
    bench.load("other", options=options)

    assert bench.loads() == ["other:latest"] * 2
    assert bench.card.report()["unloads"] == 1


def test_shift_off_reloads_the_model(bench: Bench) -> None:
    bench.load("other")
    bench.load("other", shift=False)
    assert len(bench.loads()) == 2


def test_other_options_formats_stays_and_endpoints_do_not_reload_it(bench: Bench) -> None:
    bench.answer("other", options={"num_ctx": 4096, "temperature": 0.1, "seed": 1, "top_k": 3, "stop": ["x"], "num_predict": 1})
    bench.answer("other", keep_alive="1h", format="json", options={"num_predict": 1})
    bench.post("/api/chat", model="other", messages=[{"role": "user", "content": "x"}])
    bench.post("/api/embed", model="other", input="x")
    assert bench.loads() == ["other:latest"]


def test_when_no_more_models_may_be_loaded_the_idle_one_with_the_shortest_stay_leaves() -> None:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST), MODELS, max_loaded=2).start())
    try:
        bench.load(NOMIC, keep_alive=3600)
        bench.load("other", keep_alive=1800)
        bench.load(GEMMA)
        assert set(bench.residents()) == {f"{NOMIC}:latest", GEMMA}
    finally:
        bench.close()


def test_an_idle_model_leaves_before_a_busy_one_however_long_it_was_to_stay() -> None:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST), MODELS, max_loaded=2).start())
    try:
        bench.load(NOMIC, keep_alive=-1)
        bench.ollama.faults.add("stall", model="other")
        with bench.open("/api/generate", {"model": "other", "prompt": "x", "keep_alive": 1}):
            wait_until(bench.generates)
            bench.load(GEMMA)
            assert set(bench.residents()) == {"other:latest", GEMMA}
    finally:
        bench.close()


def test_a_model_that_does_not_fit_waits_until_the_evicted_ones_memory_is_back(bench: Bench) -> None:
    bench.load(GEMMA)
    bench.load("big")

    assert set(bench.residents()) == {"big:latest"}
    assert bench.residents()["big:latest"]["size_vram"] == 6_000_000_000
    assert bench.card.report()["spills"] == 0


def test_an_eviction_waits_for_the_request_that_uses_the_model(alone: Bench) -> None:
    alone.ollama.faults.add("stall", model=GEMMA)
    with alone.open("/api/generate", {"model": GEMMA, "prompt": "x", "keep_alive": -1}):
        wait_until(alone.generates)
        waiting = alone.later("other", options={"num_predict": 1})
        wait_until(lambda: alone.is_leaving(GEMMA))
        assert not waiting.done()
        assert set(alone.residents()) == {GEMMA}

    assert waiting.result().status_code == 200
    assert set(alone.residents()) == {"other:latest"}
    assert alone.card.overlap_count == 0


def test_a_model_spills_when_another_program_has_the_memory(bench: Bench) -> None:
    bench.card.take(6_000_000_000)
    spilled = bench.answer(options={"num_predict": 20})
    listed = bench.residents()[GEMMA]

    assert 0 < listed["size_vram"] <= bench.card.total_bytes - bench.card.reserved_bytes - 6_000_000_000 < listed["size"]
    assert bench.card.report()["spills"] == 1
    on_cpu = 1 - listed["size_vram"] / listed["size"]
    assert spilled["eval_duration"] >= 20 / 55 * (1 + 6 * on_cpu) / FAST * 1e9


def test_layers_kept_off_the_card_on_purpose_are_no_spill(bench: Bench) -> None:
    bench.load(GEMMA, options={"num_gpu": 21})
    assert bench.residents()[GEMMA]["size_vram"] == 2_250_000_000
    assert bench.card.report()["spills"] == 0


def test_an_empty_list_does_not_mean_that_the_memory_is_back() -> None:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST, release_delay_s=(1e6, 1e6)), MODELS).start())
    try:
        bench.load(GEMMA)
        assert bench.unload(GEMMA).json()["done_reason"] == "unload"
        wait_until(lambda: bench.residents() == {})
        assert bench.card.returning_bytes == 4_500_000_000

        bench.load(GEMMA)
        assert bench.residents()[GEMMA]["size_vram"] < 4_500_000_000
        assert bench.card.report()["spills"] == 1
    finally:
        bench.close()


def test_memory_comes_back_by_itself_after_an_unload(bench: Bench) -> None:
    bench.load(GEMMA)
    bench.unload(GEMMA)
    wait_until(lambda: bench.card.used_bytes == bench.card.reserved_bytes)


def test_an_unload_waits_for_the_request_in_flight(bench: Bench) -> None:
    bench.ollama.faults.add("stall")
    with bench.open("/api/generate", {"model": "other", "prompt": "x"}):
        wait_until(bench.generates)
        assert bench.unload("other").json()["done_reason"] == "unload"
        assert set(bench.residents()) == {"other:latest"}
    wait_until(lambda: bench.residents() == {})


def test_an_embedding_model_is_unloaded_by_generate(bench: Bench) -> None:
    bench.load(NOMIC)
    assert bench.unload(NOMIC).json()["done_reason"] == "unload"
    wait_until(lambda: bench.residents() == {})


def test_a_stay_of_zero_ends_with_the_answer(bench: Bench) -> None:
    assert bench.answer("other", keep_alive=0)["done_reason"] == "stop"
    wait_until(lambda: bench.residents() == {})


def test_a_stay_ends_by_itself(bench: Bench) -> None:
    bench.answer("other", keep_alive="1s")
    wait_until(lambda: bench.residents() == {})
    assert bench.card.report()["unloads"] == 1


# Ollama's own queue


def test_requests_for_one_model_are_computed_one_after_another(bench: Bench) -> None:
    waiting = [bench.later("other", f"prompt {number}") for number in range(8)]

    for number, answered in enumerate(waiting):
        assert "".join(line["response"] for line in lines(answered.result())) == expected_answer(OTHER, f"prompt {number}")
    assert bench.loads() == ["other:latest"]
    assert bench.card.overlap_count == 0


@pytest.fixture
def two_slots() -> Iterator[Bench]:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST), MODELS, num_parallel=2).start())
    yield bench
    bench.close()


def test_a_model_with_two_slots_answers_two_requests_at_once_and_the_third_waits(two_slots: Bench) -> None:
    bench = two_slots
    bench.ollama.faults.add("stall", model="other", count=2, after_tokens=1)
    with bench.open("/api/generate", {"model": "other", "prompt": "a"}) as first, first.makefile("rb") as said:
        assert any(b'"response"' in line for line in said)
        with bench.open("/api/generate", {"model": "other", "prompt": "b"}) as second, second.makefile("rb") as also_said:
            assert any(b'"response"' in line for line in also_said)
            assert len(bench.card.computing_now) == 2
            third = bench.later("other", "c")
        assert third.result().status_code == 200, "a slot is free again"
    wait_until(lambda: not bench.card.computing_now)
    _, of_second, of_third = sorted(
        (entry for entry in bench.card.compute_log if entry.kind == "generate"), key=lambda entry: entry.request
    )
    assert of_second.ended_s <= of_third.started_s
    assert bench.card.overlap_count == 0
    assert bench.loads() == ["other:latest"]


def test_each_slot_has_its_own_context_and_models_that_only_embed_have_one(two_slots: Bench) -> None:
    two_slots.load(GEMMA)
    two_slots.load(NOMIC)
    there = two_slots.residents()
    assert there[GEMMA]["size"] == 4_500_000_000 + 4096 * GEMMA4_E4B.context_token_bytes
    assert there[GEMMA]["context_length"] == 4096
    assert there["nomic-embed-text:latest"]["size"] == 500_000_000
    assert [ModelSpec("x", 1, family=family).slots(4) for family in ("gemma4", "qwen35", "mllama")] == [4, 1, 1]


def test_requests_at_once_slow_each_other_down_by_less_than_their_number() -> None:
    resident = Resident(OTHER, runner_options(OTHER, {}, True), "other", 1, 1, 0.0, slots=2)
    alone = resident.slowdown
    resident.turns.extend("abc")
    assert alone == 1.0
    assert resident.slowdown == pytest.approx(2 / 2**0.6), "the third waits"


def test_two_models_at_once_are_an_overlap(bench: Bench) -> None:
    bench.load(GEMMA)
    bench.load("other")
    bench.ollama.faults.add("stall", model="other")
    with bench.open("/api/generate", {"model": "other", "prompt": "x"}):
        wait_until(lambda: bench.card.computing_now != ())
        bench.answer(options={"num_predict": 1})
    assert bench.card.overlap_count == 1


def test_the_card_is_idle_again_when_the_last_line_has_come(bench: Bench) -> None:
    bench.load(GEMMA)
    bench.load("other")
    for _ in range(100):
        for model in (GEMMA, "other"):
            bench.answer(model, options={"num_predict": 1})
        bench.post("/api/embed", model=GEMMA, input="x")
    assert bench.card.overlap_count == 0


def test_a_full_queue_refuses_loads_but_not_requests_for_a_resident(slow: Bench) -> None:
    slow.card.speed = FAST
    slow.load("other")
    slow.card.speed = 0.1
    with slow.open("/api/generate", {"model": "big"}):
        wait_until(lambda: slow.card.computing_now != ())
        with slow.open("/api/generate", {"model": GEMMA}):
            wait_until(lambda: slow.ollama.pending_count == 1)
            full = slow.post("/api/embed", model=NOMIC, input="x")
            assert (full.status_code, full.json()) == (503, BUSY)
            assert slow.answer("other", options={"num_predict": 1})["done"]
            assert slow.ollama.pending_count == 1


def test_a_dead_request_keeps_its_place_in_the_queue(slow: Bench) -> None:
    with slow.open("/api/generate", {"model": "big"}):
        wait_until(lambda: slow.card.computing_now != ())
        with slow.open("/api/generate", {"model": GEMMA}):
            wait_until(lambda: slow.ollama.pending_count == 1)
        wait_until(lambda: any(served.client_left for served in slow.ollama.served))
        full = slow.post("/api/generate", model="other")
        assert (full.status_code, full.json()) == (503, BUSY)
    wait_until(lambda: slow.ollama.pending_count == 0)
    assert slow.card.load_count == 1


def test_loads_happen_in_the_order_in_which_they_were_asked_for() -> None:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST, release_delay_s=(0, 0)), MODELS, max_loaded=1).start())
    try:
        bench.ollama.faults.add("stall", model=GEMMA)
        waiting = []
        with bench.open("/api/generate", {"model": GEMMA, "prompt": "x", "keep_alive": -1}):
            wait_until(bench.generates)
            waiting.append(bench.later("other", options={"num_predict": 1}))
            # It is taken out of the queue at once and waits for room.
            wait_until(lambda: bench.is_leaving(GEMMA))
            for model, queued_count in (("big", 1), ("other", 2)):
                waiting.append(bench.later(model, options={"num_predict": 1}))
                wait_until(lambda expected=queued_count: bench.ollama.pending_count == expected)
        assert [answered.result().status_code for answered in waiting] == [200] * 3
        assert bench.loads() == [GEMMA, "other:latest", "big:latest", "other:latest"]
    finally:
        bench.close()


# Clients that leave


def test_a_client_that_leaves_while_tokens_come_frees_the_model_at_once(bench: Bench) -> None:
    bench.ollama.faults.add("stall", after_tokens=2)
    with bench.client.stream("POST", "/api/generate", json={"model": "other", "prompt": "x"}) as stream:
        coming = stream.iter_lines()
        assert [json.loads(next(coming))["done"] for _ in range(2)] == [False, False]

    assert bench.answer("other")["done"]
    assert bench.card.overlap_count == 0
    wait_until(lambda: [served.client_left for served in bench.ollama.served] == [True, False])


def test_a_client_that_leaves_between_two_slow_tokens_is_noticed(slow: Bench) -> None:
    slow.card.speed = FAST
    slow.load("other")
    slow.card.speed = 0.001
    with slow.open("/api/generate", {"model": "other", "prompt": "x"}):
        wait_until(lambda: slow.card.computing_now != ())
    wait_until(lambda: slow.card.computing_now == ())


def test_a_client_that_leaves_while_its_model_loads_aborts_the_load(slow: Bench) -> None:
    slow.card.speed = 0.001
    with slow.open("/api/generate", {"model": GEMMA, "prompt": "x"}):
        wait_until(lambda: slow.card.computing_now != ())
        assert slow.residents()[GEMMA]["size"] == 4_500_000_000
        assert slow.card.free_bytes < 4_500_000_000
    wait_until(lambda: slow.card.computing_now == () and slow.residents() == {})
    assert slow.card.free_bytes == slow.card.total_bytes - slow.card.reserved_bytes


def test_a_request_that_waited_for_an_aborted_load_loads_by_itself(slow: Bench) -> None:
    slow.card.speed = 0.001
    with slow.open("/api/generate", {"model": "other", "prompt": "x"}):
        wait_until(lambda: slow.card.computing_now != ())
        waiting = slow.later("other", options={"num_predict": 1})
        slow.card.speed = FAST
    assert waiting.result().status_code == 200
    assert slow.card.load_count == 2


def test_a_client_that_leaves_while_it_waits_for_its_turn_is_never_computed(bench: Bench) -> None:
    bench.ollama.faults.add("stall")
    bench.load("other")
    with bench.open("/api/generate", {"model": "other", "prompt": "first"}):
        wait_until(lambda: bench.card.computing_now != ())
        with bench.open("/api/generate", {"model": "other", "prompt": "second"}):
            pass
        wait_until(lambda: any(served.client_left for served in bench.ollama.served))
    wait_until(lambda: bench.card.computing_now == ())
    assert [entry.kind for entry in bench.card.compute_log] == ["load", "prompt", "decode", "generate"]


# Faults


def test_out_of_memory_fails_the_load_and_gives_the_memory_back(bench: Bench) -> None:
    bench.ollama.faults.add("out_of_memory")
    failed = bench.generate()

    assert failed.status_code == 500
    assert failed.headers["content-type"] == "application/json; charset=utf-8"
    assert failed.json()["error"].startswith(
        "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory\n"
    )
    assert bench.residents() == {}
    wait_until(lambda: bench.card.used_bytes == bench.card.reserved_bytes)
    assert bench.answer(options={"num_predict": 1})["done"]


@pytest.mark.parametrize(("stream", "content_type"), [(True, "application/json"), (False, "application/json; charset=utf-8")])
def test_a_runner_that_dies_before_the_first_token_keeps_its_status(bench: Bench, stream: bool, content_type: str) -> None:
    bench.ollama.faults.add("crash_before_first_token")
    failed = bench.generate(stream=stream)

    assert (failed.status_code, failed.headers["content-type"]) == (500, content_type)
    assert failed.json()["error"].startswith("an error was encountered while running the model: CUDA error: ")


def test_a_runner_that_dies_on_its_way_ends_the_stream_with_an_error(bench: Bench) -> None:
    bench.ollama.faults.add("crash_mid_stream", after_tokens=4)
    answered = bench.generate()
    said = lines(answered)

    assert answered.status_code == 200
    assert ["response" in line for line in said] == [True] * 4 + [False]
    assert list(said[-1]) == ["error"]
    assert "CUDA error" in said[-1]["error"]


def test_a_runner_that_dies_on_its_way_fails_an_answer_in_one_piece(bench: Bench) -> None:
    bench.ollama.faults.add("crash_mid_stream")
    assert bench.generate(stream=False).status_code == 500


def test_a_crashed_runner_gives_its_memory_back_stays_listed_and_is_loaded_anew(bench: Bench) -> None:
    bench.ollama.faults.add("crash_before_first_token")
    bench.generate()

    assert set(bench.residents()) == {GEMMA}
    wait_until(lambda: bench.card.used_bytes == bench.card.reserved_bytes)
    assert bench.answer(options={"num_predict": 1})["done"]
    assert bench.loads() == [GEMMA, GEMMA]


def test_a_truncated_stream_ends_well_but_without_a_done_line(bench: Bench) -> None:
    bench.ollama.faults.add("silent_truncation", after_tokens=2, count=2)
    assert [line["done"] for line in lines(bench.generate())] == [False, False]
    whole = bench.answer()
    assert (whole["done"], whole["response"]) == (False, expected_answer(GEMMA, "Revise this", 2))
    assert bench.answer()["done"]


def test_a_stream_may_be_truncated_before_its_first_token(bench: Bench) -> None:
    bench.ollama.faults.add("silent_truncation", after_tokens=0)
    answered = bench.generate()
    assert (answered.status_code, answered.content) == (200, b"")


def test_a_dropped_connection_breaks_the_stream(bench: Bench) -> None:
    bench.ollama.faults.add("drop_connection", after_tokens=2)
    said = []
    with (
        pytest.raises(httpx.RemoteProtocolError),
        bench.client.stream("POST", "/api/generate", json={"model": "other", "prompt": "x"}) as stream,
    ):
        for line in stream.iter_lines():
            said.append(line)
    assert len(said) == 2
    bench.ollama.faults.add("drop_connection")
    with pytest.raises(httpx.RemoteProtocolError):
        bench.post("/api/embed", model=NOMIC, input="x")


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat", "/api/embed", "/api/embeddings"])
def test_a_hanging_request_sends_nothing_until_its_client_leaves(bench: Bench, path: str) -> None:
    bench.ollama.faults.add("hang")
    body = {"model": "other", "prompt": "x", "input": "x", "messages": [{"role": "user", "content": "x"}]}
    with bench.open(path, body) as connection:
        wait_until(bench.generates)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    wait_until(lambda: bench.card.computing_now == ())


@pytest.mark.parametrize(("path", "field"), [("/api/embed", "input"), ("/api/embeddings", "prompt")])
def test_a_runner_may_die_while_it_embeds(bench: Bench, path: str, field: str) -> None:
    bench.ollama.faults.add("crash_before_first_token")
    failed = bench.post(path, model=NOMIC, **{field: "x"})
    assert failed.status_code == 500
    assert "CUDA error" in failed.json()["error"]


def test_a_chat_the_runner_refuses_holds_the_runners_own_json(bench: Bench) -> None:
    bench.ollama.faults.add("context_exceeded")
    refused = bench.post("/api/chat", model=GEMMA, messages=[{"role": "user", "content": "x"}])
    assert refused.status_code == 400
    assert json.loads(refused.json()["error"])["error"]["type"] == "exceed_context_size_error"


def test_busy_refuses_the_request(bench: Bench) -> None:
    bench.ollama.faults.add("busy")
    refused = bench.post("/api/embed", model=NOMIC, input="x")
    assert (refused.status_code, refused.json()) == (503, BUSY)


def test_a_slow_unload_outlasts_ollamas_own_wait_for_the_memory() -> None:
    card = SimulatedCard(speed=FAST)
    bench = Bench(OllamaSimulator(card, MODELS, max_loaded=1).start())
    try:
        bench.load(GEMMA)
        card.speed = 20.0
        bench.ollama.faults.add("slow_unload")
        bench.load("big")
        assert card.report()["spills"] == 1
    finally:
        bench.close()


def test_a_fault_hits_its_model_as_often_as_it_was_told(bench: Bench) -> None:
    bench.ollama.faults.add("busy", model="other:latest", count=2)
    statuses = [bench.generate(model, options={"num_predict": 1}).status_code for model in (GEMMA, "other", "other", "other")]
    assert statuses == [200, 503, 503, 200]

    bench.ollama.faults.add("busy", count=None)
    assert [bench.generate().status_code for _ in range(5)] == [503] * 5
    bench.ollama.faults.clear()
    assert bench.generate(options={"num_predict": 1}).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "fire"}, "unknown fault 'fire'. Faults: out_of_memory, "),
        ({"kind": "busy", "count": 0}, "count must be 1 or more"),
        ({"kind": "crash_mid_stream", "after_tokens": 0}, "must be 1 or more, not 0"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Faults().add(**wrong)


def test_a_lost_card_fails_loads_and_kills_runners(bench: Bench) -> None:
    bench.load("other")
    bench.card.lost = True

    assert bench.generate(GEMMA).json()["error"].startswith("llama-server process has terminated: exit status 1: CUDA error")
    assert bench.generate("other", stream=False).status_code == 500
    bench.card.lost = False
    assert bench.answer("other")["done"]


def test_a_card_lost_while_tokens_come_ends_the_stream_with_an_error(slow: Bench) -> None:
    slow.card.speed = FAST
    slow.load("other")
    slow.card.speed = 0.1
    with slow.client.stream("POST", "/api/generate", json={"model": "other", "prompt": "x"}) as stream:
        coming = stream.iter_lines()
        next(coming)
        slow.card.lost = True
        assert "CUDA error" in json.loads(list(coming)[-1])["error"]


# Outages


def test_an_outage_breaks_streams_refuses_connections_and_frees_the_card(bench: Bench) -> None:
    bench.ollama.faults.add("stall", after_tokens=1)
    url = bench.ollama.url
    with bench.client.stream("POST", "/api/generate", json={"model": "other", "prompt": "x", "keep_alive": -1}) as stream:
        coming = stream.iter_lines()
        next(coming)
        bench.ollama.go_away()
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            next(coming)
    with pytest.raises(httpx.ConnectError):
        bench.client.get("/api/ps")
    wait_until(lambda: bench.card.used_bytes == bench.card.reserved_bytes and bench.card.computing_now == ())

    bench.ollama.come_back()
    bench.ollama.come_back()
    assert bench.ollama.url == url
    assert bench.residents() == {}
    assert bench.answer("other")["done"]


def test_an_outage_ends_loads_and_queued_requests(slow: Bench) -> None:
    with slow.open("/api/generate", {"model": "big"}) as loading:
        wait_until(lambda: slow.card.computing_now != ())
        with slow.open("/api/generate", {"model": "other"}) as queued:
            wait_until(lambda: slow.ollama.pending_count == 1)
            slow.ollama.go_away()
            assert (loading.recv(1), queued.recv(1)) == (b"", b"")
    wait_until(lambda: slow.card.computing_now == ())
    assert slow.ollama.pending_count == 0
    assert slow.card.used_bytes == slow.card.reserved_bytes

    slow.card.speed = FAST
    slow.ollama.come_back()
    slow.load("other")
    assert set(slow.residents()) == {"other:latest"}


def test_an_outage_ends_by_itself(bench: Bench) -> None:
    bench.ollama.go_away(for_s=0.02)
    with httpx.Client(transport=httpx.HTTPTransport(retries=0)) as client:

        def is_back() -> bool:
            try:
                return client.get(bench.ollama.url).text == "Ollama is running"
            except httpx.ConnectError:
                return False

        wait_until(is_back)


def test_an_outage_can_be_ordered_and_ended_from_outside(bench: Bench) -> None:
    ordered = bench.post("/simulator/outage", for_s=None)
    assert ordered.json() == {"away": True, "for_s": None}
    wait_until(lambda: _is_refused(bench.ollama.url))

    with httpx.Client(base_url=bench.ollama.control_url, timeout=DEADLINE_S) as control:
        assert control.get("/simulator/card").json()["report"]["loads"] == 0
        assert control.delete("/simulator/outage").json() == {"away": False}
    assert bench.residents() == {}


def _is_refused(url: str) -> bool:
    try:
        httpx.get(url, timeout=DEADLINE_S)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False
    return False


# Control from another process


def test_the_card_can_be_read_and_changed_over_http(bench: Bench) -> None:
    bench.load(GEMMA)
    changed = bench.post("/simulator/card", take_bytes=1000, lost=True).json()

    assert changed["report"] == bench.card.report() | {"busy_s": changed["report"]["busy_s"]}
    assert changed["used_bytes"] == bench.card.used_bytes == bench.card.reserved_bytes + 4_500_001_000
    assert changed["lost"] is True
    assert changed["processes"][0] == {"pid": 4001, "name": "ollama", "used_bytes": 4_500_000_000}
    assert bench.post("/simulator/card", give_bytes=1000, lost=False).json()["used_bytes"] == bench.card.used_bytes
    assert bench.client.get("/simulator/card").json()["lost"] is False
    assert bench.post("/simulator/card", temperature_c=90).json()["temperature_c"] == 90
    assert bench.post("/simulator/card", temperature_c=None).json()["temperature_c"] == 41


def test_faults_can_be_added_listed_and_cleared_over_http(bench: Bench) -> None:
    added = bench.post("/simulator/faults", kind="stall", model=GEMMA, count=None, after_tokens=7)
    fault = {"kind": "stall", "model": GEMMA, "count": None, "after_tokens": 7}
    assert added.json() == {"faults": [fault]}
    assert bench.client.get("/simulator/faults").json() == {"faults": [fault]}
    assert bench.client.delete("/simulator/faults").json() == {"faults": []}
    for kind in FAULT_KINDS:
        assert bench.post("/simulator/faults", kind=kind).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/simulator/faults", {"kind": "fire"}, "unknown fault 'fire'"),
        ("/simulator/faults", {"kind": "busy", "modle": "x"}, "unknown field modle. Fields: kind, model"),
        ("/simulator/faults", {"kind": "busy", "count": "two"}, 'count must be a number, not "two"'),
        ("/simulator/faults", [1], "the body must be a JSON object"),
        ("/simulator/card", {"take": 1}, "unknown field take. Fields: take_bytes"),
        ("/simulator/card", {"take_bytes": 10**12}, "another program asked for 1000000000000 bytes"),
        ("/simulator/card", {"give_bytes": 1}, "holds 0 bytes and cannot release 1"),
        ("/simulator/outage", {"for_s": -1}, "for_s must be 0 or more"),
    ],
)
def test_a_wrong_control_request_is_refused_and_changes_nothing(bench: Bench, path: str, body: object, words: str) -> None:
    refused = bench.client.post(path, json=body)
    assert refused.status_code == 400
    assert words in refused.json()["error"]
    assert bench.residents() == {}
    assert bench.ollama.faults.waiting() == []


def test_an_unknown_control_path_is_not_found(bench: Bench) -> None:
    assert bench.client.get("/simulator/nope").json() == {"error": "unknown endpoint GET /simulator/nope"}
    with httpx.Client(base_url=bench.ollama.control_url, timeout=DEADLINE_S) as control:
        assert control.get("/api/ps").status_code == 404


def test_what_was_served_is_remembered(bench: Bench) -> None:
    bench.generate("nope")
    bench.client.get("/api/ps")
    wait_until(lambda: len(bench.ollama.served) == 2)
    first, second = bench.ollama.served
    assert (first.method, first.path, first.status, first.client_left) == ("POST", "/api/generate", 404, False)
    assert first.body == {"model": "nope", "prompt": "Revise this"}
    assert (second.path, second.body, second.status) == ("/api/ps", None, 200)
    assert (second.request, second.output_tokens) == ("", 0)


def test_what_was_served_is_found_again_in_the_cards_record(bench: Bench) -> None:
    bench.load("other")
    answer = bench.answer("other", options={"num_predict": 7})
    wait_until(lambda: len(bench.ollama.served) == 2)
    served = bench.ollama.served[1]
    parts = {entry.kind: entry for entry in bench.card.compute_log if entry.request == served.request}

    assert served.output_tokens == answer["eval_count"] == 7
    assert list(parts) == ["prompt", "decode", "generate"]
    assert parts["generate"].started_s <= parts["prompt"].started_s < parts["prompt"].ended_s <= parts["decode"].started_s
    # A thread that wakes late writes faster afterwards.
    assert parts["decode"].ended_s - parts["decode"].started_s >= 0.5 * 7 / 60.0 / FAST


def test_tokens_said_to_a_client_that_left_are_counted(slow: Bench) -> None:
    slow.card.speed = FAST
    slow.load("other")
    slow.card.speed = 10
    with slow.open("/api/generate", {"model": "other", "prompt": "x"}) as connection:
        connection.recv(1)
    wait_until(lambda: len(slow.ollama.served) == 2)
    assert 1 <= slow.ollama.served[1].output_tokens < 10
    assert slow.ollama.served[1].client_left


# HTTP


def test_one_connection_serves_many_requests(bench: Bench) -> None:
    with bench.open("/api/show", {"model": "nope"}) as connection, connection.makefile("rb") as answers:
        for _ in range(3):
            assert answers.readline() == b"HTTP/1.1 404 Not Found\r\n"
            while (line := answers.readline()) != b"\r\n":
                length = int(line.split(b":")[1]) if line.startswith(b"Content-Length") else 0
            assert json.loads(answers.read(length)) == {"error": "model 'nope:latest' not found"}
            connection.sendall(b'POST /api/show HTTP/1.1\r\nContent-Length: 16\r\n\r\n{"model":"nope"}')


def test_two_requests_sent_at_once_are_answered_in_turn(bench: Bench) -> None:
    bench.load("other")
    with bench.open("/api/generate", {"model": "other", "prompt": "x", "stream": False}) as connection:
        connection.sendall(b"GET /api/version HTTP/1.1\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as answers:
            whole = answers.read()
    assert whole.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert whole.endswith(b'{"version":"0.33.0"}')


def test_a_body_may_come_in_chunks(bench: Bench) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"model":'
        yield b'"nope"}'

    assert bench.client.post("/api/show", content=body()).json() == {"error": "model 'nope:latest' not found"}


def test_a_client_may_ask_before_it_sends_its_body(bench: Bench) -> None:
    with bench.open("/", {}) as connection, connection.makefile("rb") as answers:
        while answers.readline() != b"\r\n":
            pass
        assert answers.read(22) == b"405 method not allowed"
        connection.sendall(b"POST /api/show HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
        connection.sendall(b"{}")
        assert (answers.readline(), answers.readline()) == (b"\r\n", b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "nonsense", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nnonsense\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
)
def test_what_is_no_http_is_refused_and_the_server_goes_on(bench: Bench, nonsense: bytes) -> None:
    host, port = bench.ollama.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(nonsense)
        with connection.makefile("rb") as answers:
            assert answers.read().startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert bench.client.get("/").text == "Ollama is running"


def test_a_body_that_never_comes_whole_is_no_request(bench: Bench) -> None:
    host, port = bench.ollama.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        connection.sendall(b"POST /api/show HTTP/1.1\r\nContent-Length: 16\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert bench.ollama.served == ()


# The simulator itself


def test_it_stops_with_connections_open_and_may_be_stopped_twice() -> None:
    bench = Bench(OllamaSimulator(SimulatedCard(speed=FAST), MODELS).start())
    try:
        bench.ollama.faults.add("hang")
        with bench.open("/api/generate", {"model": "other", "prompt": "x"}) as connection:
            wait_until(bench.generates)
            bench.ollama.stop()
            bench.ollama.stop()
            assert connection.recv(1) == b""
        assert bench.card.computing_now == ()
        with pytest.raises(RuntimeError, match="already started"):
            bench.ollama.start()
    finally:
        bench.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OllamaSimulator(SimulatedCard(speed=2), speed=3), "the card's speed is 2"),
        (lambda: OllamaSimulator(max_loaded=0), "max_loaded must be 1 or more, not 0"),
        (lambda: OllamaSimulator(models=[OTHER, ModelSpec("other:latest", 1)]), "two models are named 'other:latest'"),
        (lambda: OllamaSimulator(models=[ModelSpec("a b", 1)]), "'a b' is not a model name"),
        (lambda: OllamaSimulator(models=[ModelSpec("a", 0)]), "bytes, tokens_per_s and layer_count must be greater than 0"),
    ],
)
def test_a_simulator_that_makes_no_sense_is_refused(make: Callable[[], OllamaSimulator], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_an_address_exists_only_after_the_start() -> None:
    with pytest.raises(RuntimeError, match="before start"):
        _ = OllamaSimulator().url
    OllamaSimulator().stop()


def test_models_may_be_given_under_names(bench: Bench) -> None:
    with OllamaSimulator(models={"other": OTHER}, speed=FAST) as ollama:
        assert len(httpx.get(f"{ollama.url}/api/tags", timeout=DEADLINE_S).json()["models"]) == 1
    assert bench.client.get("/").text == "Ollama is running"


# The command


@pytest.fixture
def command(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    port_file = tmp_path / "port"
    arguments = ["--port", "0", "--speed", "100", "--vram", "6GiB", "--port-file", str(port_file)]
    words = [sys.executable, "-W", "error", "-m", "gpuqueue.simulators.ollama", *arguments]
    with started(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process, port_file


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_address_serves_and_ends_on_a_signal(
    command: tuple[subprocess.Popen[str], Path], ending: signal.Signals
) -> None:
    process, port_file = command
    assert process.stdout is not None
    assert process.stderr is not None
    url = process.stdout.readline().strip()

    assert url == f"http://127.0.0.1:{port_file.read_text().strip()}"
    assert httpx.get(f"{url}/simulator/card", timeout=DEADLINE_S).json()["total_bytes"] == 6 * 2**30
    asked = {"model": GEMMA, "prompt": "x", "stream": False, "options": {"num_predict": 2}}
    assert httpx.post(f"{url}/api/generate", json=asked, timeout=DEADLINE_S).json()["response"] == expected_answer(GEMMA, "x", 2)
    process.send_signal(ending)
    assert process.wait(DEADLINE_S) == 0
    assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--speed", "0"], "argument --speed: must be a number above 0, not '0'"),
        (["--speed", "fast"], "must be a number above 0, not 'fast'"),
        (["--vram", "8XB"], "argument --vram: '8XB' is not a size; use for example 8GB"),
        (["--vram", "1MB"], "--vram is too small"),
        (["--port", "70000"], "'70000' is not a port"),
        (["--max-loaded", "0"], "must be an integer of at least 1, not '0'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_arguments_are_named_and_end_with_2(wrong: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    port = bench.ollama.url.rpartition(":")[2]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main(["--port", port]) == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
