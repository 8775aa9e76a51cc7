"""How the simulated Ollama renders conversations: as the real one does for each family, which decides what is continued."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import GEMMA4_E4B, ModelSpec, OllamaSimulator, expected_answer
from gpuqueue.testing.waiting import wait_until

GEMMA = "gemma4:e4b"
FAMILIES = [
    GEMMA4_E4B,
    ModelSpec("vl", 1_000_000_000, renderer="qwen3vl"),
    ModelSpec("qwen", 1_000_000_000, ("completion", "thinking"), renderer="qwen35"),
    ModelSpec("chatml", 1_000_000_000, answer_token_count=10),
]
SYSTEM, USER = {"role": "system", "content": " Be short.\n"}, {"role": "user", "content": " Hi "}
BEGUN = {"role": "assistant", "content": " Hello there "}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with OllamaSimulator(SimulatedCard(speed=2000), FAMILIES) as ollama, httpx.Client(base_url=ollama.url) as client:
        yield client


def asked(client: httpx.Client, path: str, model: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(path, json={"model": model, "stream": False, "think": False, **fields})
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def shown(client: httpx.Client, path: str, model: str, **fields: Any) -> str:
    return str(asked(client, path, model, _debug_render_only=True, **fields)["_debug_info"]["rendered_template"])


def test_gemma4_closes_the_answer_that_was_begun_and_trims_the_texts(client: httpx.Client) -> None:
    begun = "<bos><|turn>system\nBe short.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    assert shown(client, "/api/chat", GEMMA, messages=[SYSTEM, USER]) == begun
    continued = shown(client, "/api/chat", GEMMA, messages=[SYSTEM, USER, BEGUN])
    assert continued == f"{begun}Hello there<turn|>\n<|turn>model\n"
    twice = shown(client, "/api/chat", GEMMA, messages=[USER, BEGUN, BEGUN])
    assert twice == "<bos><|turn>user\nHi<turn|>\n<|turn>model\nHello thereHello there<turn|>\n<|turn>model\n"


@pytest.mark.parametrize("think", [None, True])
def test_gemma4_is_told_to_think_unless_it_is_told_not_to(client: httpx.Client, think: bool | None) -> None:
    told = "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\n"
    assert shown(client, "/api/chat", GEMMA, messages=[USER], think=think) == told


def test_a_family_that_continues_leaves_the_answer_open_and_its_text_as_it_is(client: httpx.Client) -> None:
    begun = "<|im_start|>system\n Be short.\n<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n"
    assert shown(client, "/api/chat", "vl", messages=[SYSTEM, USER]) == begun
    assert shown(client, "/api/chat", "vl", messages=[SYSTEM, USER, BEGUN]) == f"{begun} Hello there "
    closed = f"{begun} Hello there <|im_end|>\n<|im_start|>assistant\n"
    assert shown(client, "/api/chat", "chatml", messages=[SYSTEM, USER, BEGUN]) == closed


def test_empty_thoughts_stand_before_an_answer_but_not_before_one_that_is_continued(client: httpx.Client) -> None:
    begun = "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n"
    assert shown(client, "/api/chat", "qwen", messages=[USER]) == f"{begun}<think>\n\n</think>\n\n"
    assert shown(client, "/api/chat", "qwen", messages=[USER], think=None) == f"{begun}<think>\n"
    assert shown(client, "/api/chat", "qwen", messages=[USER, BEGUN]) == f"{begun} Hello there "


def test_a_prompt_is_rendered_as_a_chat_unless_it_is_raw(client: httpx.Client) -> None:
    for spec in FAMILIES:
        as_chat = shown(client, "/api/chat", spec.name, messages=[SYSTEM, USER])
        assert shown(client, "/api/generate", spec.name, prompt=USER["content"], system=SYSTEM["content"]) == as_chat
        assert shown(client, "/api/generate", spec.name, prompt=" Hi ", raw=True) == " Hi "


def test_showing_a_prompt_loads_the_model_and_generates_nothing() -> None:
    with OllamaSimulator(SimulatedCard(speed=2000), FAMILIES) as ollama, httpx.Client(base_url=ollama.url) as client:
        chat = asked(client, "/api/chat", "vl", messages=[USER], _debug_render_only=True)
        prompt = asked(client, "/api/generate", "vl", prompt="Hi", _debug_render_only=True)
        assert ollama.card.load_count == 1
        wait_until(lambda: len(ollama.served) == 2)
        assert [served.output_tokens for served in ollama.served] == [0, 0]
    assert (chat["message"], chat["done"], prompt["response"], prompt["done"]) == ({"role": "", "content": ""}, False, "", False)
    assert sorted(chat) == ["_debug_info", "created_at", "done", "message", "model"]


@pytest.mark.parametrize("spec", FAMILIES, ids=lambda spec: spec.name)
def test_a_rendered_prompt_is_continued_at_any_character(client: httpx.Client, spec: ModelSpec) -> None:
    messages = [SYSTEM, {"role": "user", "content": "naïve 日本 🙂"}]
    prompt = shown(client, "/api/chat", spec.name, messages=messages)
    whole = asked(client, "/api/chat", spec.name, messages=messages, options={"num_predict": 8})["message"]["content"]
    assert whole == expected_answer(spec, messages, 8)
    for end in range(len(whole)):
        said = whole[:end]
        raw = asked(client, "/api/generate", spec.name, prompt=prompt + said, raw=True, options={"num_predict": 99})
        assert (said + raw["response"]).startswith(whole)


@pytest.mark.parametrize("model", ["vl", "qwen"])
def test_a_chat_is_continued_where_its_rendering_stays_open(client: httpx.Client, model: str) -> None:
    said = expected_answer(model, [USER], 5)
    begun = [USER, {"role": "assistant", "content": said}]
    rest = asked(client, "/api/chat", model, messages=begun, options={"num_predict": 7})["message"]["content"]
    assert said + rest == expected_answer(model, [USER], 12)


@pytest.mark.parametrize("model", [GEMMA, "chatml"])
def test_a_chat_that_is_closed_gets_a_second_answer(client: httpx.Client, model: str) -> None:
    said = expected_answer(model, [USER], 5)
    again = [USER, {"role": "assistant", "content": said}]
    answered = asked(client, "/api/chat", model, messages=again, options={"num_predict": 7})["message"]["content"]
    assert answered.startswith("Answer to ")
    assert answered[:18] != said[:18]


def test_an_answer_that_is_complete_already_is_continued_by_nothing(client: httpx.Client) -> None:
    whole = asked(client, "/api/chat", "vl", messages=[USER])["message"]["content"]
    more = asked(client, "/api/chat", "vl", messages=[USER, {"role": "assistant", "content": whole}])
    assert (more["message"]["content"], more["done_reason"]) == ("", "stop")
    assert "eval_count" not in more
