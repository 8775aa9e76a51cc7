"""Real exchanges with Ollama, kept in `transcripts/`, put to the simulator.

Each line of a file is one step. A step with `request` sends it (`json` or `text` is the body) and compares the answer: status,
content type, framing, every field in its order. Values that differ from one run to the next are compared by their kind; all
others, errors above all, to the letter. A step with `residents` compares `/api/ps`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import ModelSpec, OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S, wait_until

TRANSCRIPTS = Path(__file__).parent / "transcripts"
SPEED = 30.0
FOR_EVER = datetime(2300, 1, 1, tzinfo=UTC)
MODELS = (
    ModelSpec(
        "chatm",
        5_045_747_712,
        parameter_size="65",
        quantization="Q8_0",
        answer_token_count=3,
        embedding_length=3,
    ),
    ModelSpec("native", 5_045_747_712, native_chat=True, answer_token_count=3),
    ModelSpec(
        "embedm",
        4_777_312_256,
        capabilities=("embedding",),
        family="nomic-bert",
        parameter_size="69",
        quantization="F16",
        context_length=2048,
        embedding_length=3,
    ),
    ModelSpec("other", 5_045_747_712),
)

Step = dict[str, Any]


def steps(name: str) -> list[Step]:
    return [json.loads(line) for line in (TRANSCRIPTS / name).read_text(encoding="utf-8").splitlines()]


def simulator() -> OllamaSimulator:
    # Two of these models fit, not three, and memory is back at once, as where the exchanges were taken.
    return OllamaSimulator(SimulatedCard(total_bytes=12_000_000_000, release_delay_s=(0, 0), speed=SPEED), MODELS)


def is_timestamp(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,8}[1-9]|\.[1-9])?Z", value) is not None


def is_count(value: object) -> bool:
    return type(value) is int and value > 0


def is_text(value: object) -> bool:
    return isinstance(value, str)


def is_integers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


def is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


VARYING: dict[str, Callable[[object], bool]] = {
    "created_at": is_timestamp,
    "expires_at": is_timestamp,
    "digest": is_digest,
    "context": is_integers,
    "bytes": is_integers,
    "token": is_text,
    "total_duration": is_count,
    "load_duration": is_count,
    "prompt_eval_count": is_count,
    "prompt_eval_duration": is_count,
    "eval_count": is_count,
    "eval_duration": is_count,
}


def assert_alike(expected: object, answered: object, place: str) -> None:
    """Same fields in the same order and the same values, but for those that vary; said text only when there is some."""
    field = place.rpartition(".")[2]
    if field in VARYING:
        assert VARYING[field](answered), f"{place}: {answered!r}"
    elif field in ("response", "content"):
        assert isinstance(answered, str), place
        assert bool(answered) == bool(expected), f"{place}: {answered!r}"
    elif isinstance(expected, dict):
        assert isinstance(answered, dict), place
        assert list(answered) == list(expected), place
        for name in expected:
            assert_alike(expected[name], answered[name], f"{place}.{name}")
    elif isinstance(expected, list):
        assert isinstance(answered, list), place
        assert len(answered) == len(expected), place
        for number, (one, other) in enumerate(zip(expected, answered, strict=True)):
            assert_alike(one, other, f"{place}[{number}]")
    elif "embedding" in place and isinstance(expected, (int, float)):
        assert isinstance(answered, (int, float)), place
    else:
        assert answered == expected, place
        assert type(answered) is type(expected), place


def exchange(client: httpx.Client, step: Step) -> None:
    method, path = step["request"].split()
    body = json.dumps(step["json"]) if "json" in step else step.get("text")
    answer = client.request(method, path, content=body)

    place = step["title"]
    assert answer.status_code == step["status"], f"{place}: {answer.text}"
    assert answer.headers["content-type"] == step["content_type"], place
    assert (answer.headers.get("transfer-encoding") == "chunked") == step["chunked"], place
    if not step["chunked"]:
        assert int(answer.headers["content-length"]) == step.get("content_length", len(answer.content)), place
    if "answer" in step:
        lines = answer.text.split("\n")
        if step["content_type"] == "application/x-ndjson":
            assert lines.pop() == "", f"{place}: the last line ends too"
        assert_alike(step["answer"], [json.loads(line) for line in lines], place)
    else:
        assert answer.text == step.get("answer_text", ""), place


@pytest.fixture(scope="module")
def errors_client() -> Iterator[httpx.Client]:
    with simulator() as ollama, httpx.Client(base_url=ollama.url, timeout=DEADLINE_S) as client:
        yield client


@pytest.mark.parametrize("step", steps("errors.jsonl"), ids=lambda step: step["title"])
def test_it_refuses_to_the_letter_as_ollama_does(errors_client: httpx.Client, step: Step) -> None:
    exchange(errors_client, step)


def residents(client: httpx.Client) -> list[Step]:
    listed: list[Step] = client.get("/api/ps").json()["models"]
    return listed


def assert_residents(listed: list[Step], step: Step, keep_alive_s: dict[str, float], began: datetime) -> None:
    now = datetime.now(UTC)
    shown = [{name: model[name] for name in ("name", "size", "size_vram", "context_length")} for model in listed]
    expected = [{name: value for name, value in model.items() if name != "expires_at"} for model in step["residents"]]
    assert shown == expected, step["title"]
    for model, real in zip(listed, step["residents"], strict=True):
        expires_at = datetime.fromisoformat(model["expires_at"])
        assert (expires_at > FOR_EVER) == (datetime.fromisoformat(real["expires_at"]) > FOR_EVER), step["title"]
        if expires_at < FOR_EVER:
            stays_s = keep_alive_s.get(model["name"], 300.0) / SPEED
            assert began.timestamp() + stays_s <= expires_at.timestamp() <= now.timestamp() + stays_s, step["title"]


def test_a_whole_conversation_goes_as_with_ollama() -> None:
    keep_alive_s: dict[str, float] = {}
    began = datetime.now(UTC)
    with simulator() as ollama, httpx.Client(base_url=ollama.url, timeout=DEADLINE_S) as client:
        conversation = steps("exchanges.jsonl")
        for number, step in enumerate(conversation):
            if "residents" not in step:
                if "fault" in step:
                    ollama.faults.add(step["fault"])
                exchange(client, step)
                asked = step.get("json", {})
                if "keep_alive" in asked:
                    keep_alive_s[f"{asked['model']}:latest"] = float(str(asked["keep_alive"]).rstrip("s"))
            else:
                listed = residents(client)
                if step["title"] == "residents, one for half a second":
                    # On a busy machine it may be gone before it was looked for: load it once more.
                    while len(listed) != 2:
                        exchange(client, conversation[number - 1])
                        listed = residents(client)
                elif step["title"] == "residents after it expired":
                    wait_until(lambda: len(residents(client)) == 1)
                    keep_alive_s.clear()
                    listed = residents(client)
                assert_residents(listed, step, keep_alive_s, began)
        wait_until(lambda: residents(client) == [])


def test_every_exchange_is_among_the_steps() -> None:
    assert (len(steps("errors.jsonl")), len(steps("exchanges.jsonl"))) == (56, 37)
