"""Continuing an interrupted answer: the model gets its own prompt and its own text, or the attempt starts again."""

from __future__ import annotations

import gc
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from gpuqueue.contract.executor import AttemptInterrupted
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.job import PartialOutput
from gpuqueue.domain.settings import BackendSettings, ModelSettings
from gpuqueue.executors.ollama import Chat, Generate
from gpuqueue.executors.ollama_continuing import continuation
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import GEMMA4_E4B, ModelSpec, OllamaSimulator, expected_answer
from gpuqueue.simulators.ollama.answers import answer_tokens
from gpuqueue.testing import RecordedAttempt
from gpuqueue.testing.waiting import wait_until
from tests.executors.ollama_server import END, OK, Server, chunk, line, plain

WORDS = "  Résumé für 日本語 🙂 please  "
COUNT = 12
ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": WORDS}]
FAMILIES = {
    "gemma4:e4b": GEMMA4_E4B,
    "qwen3-vl": ModelSpec("qwen3-vl", 2_000_000_000, renderer="qwen3vl"),
    "qwen3.5": ModelSpec("qwen3.5", 2_000_000_000, ("completion", "thinking"), renderer="qwen35"),
    "llama": ModelSpec("llama", 2_000_000_000),
}
# How the rest is asked for: only a chat that is rendered with nothing left out, and nothing added, is the same prompt.
CHATS = {"qwen3-vl"}
SEEDS = itertools.count(1)


class Cut(RecordedAttempt):
    """An attempt that is preempted after so many pieces of its text."""

    def __init__(self, arguments: Mapping[str, Any], after: int | None = None, partial: PartialOutput | None = None) -> None:
        self.seed = next(SEEDS)  # by which its requests are told from others
        arguments = {**arguments, "options": {**arguments["options"], "seed": self.seed}}
        super().__init__(arguments, placement=Placement("gpu0", 1))
        self._after = after
        self.partial = partial

    def emit(self, text: str) -> None:
        if len(self.emitted) == self._after:
            self.interrupt("preempted")  # this piece was read, but is not said any more
        super().emit(text)


@pytest.fixture(scope="module")
def ollama() -> Iterator[OllamaSimulator]:
    with OllamaSimulator(SimulatedCard(speed=2000), list(FAMILIES.values())) as ollama:
        yield ollama
    gc.collect()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": ASKED, "think": False, "options": {"num_predict": COUNT}, **more}


def generate(model: str, **more: Any) -> dict[str, Any]:
    words = {"prompt": WORDS, "system": "Be short."}
    return {"model": model, **words, "think": False, "options": {"num_predict": COUNT}, **more}


def on(ollama: OllamaSimulator, arguments: Mapping[str, Any], models: Mapping[str, ModelSettings] | None = None) -> Any:
    return (Chat if "messages" in arguments else Generate)(BackendSettings(url=ollama.url), models or {})


def preempted(ollama: OllamaSimulator, arguments: Mapping[str, Any], after: int) -> PartialOutput:
    """Run an attempt until it has emitted so many pieces, and return its output as a worker has it."""
    attempt = Cut(arguments, after)
    with pytest.raises(AttemptInterrupted):
        on(ollama, arguments).run(attempt)
    return PartialOutput(1, "".join(attempt.emitted), max(attempt.token_counts))


def asked(ollama: OllamaSimulator, attempt: Cut, count: int) -> list[tuple[str, bool]]:
    """Return the requests of an attempt, at least so many, that show a prompt or get an answer: where they went, and which."""

    def served() -> list[tuple[str, bool]]:
        bodies = [(item.path, cast(Mapping[str, Any], item.body or {})) for item in ollama.served]
        mine = [(path, body) for path, body in bodies if body.get("options", {}).get("seed") == attempt.seed]
        return [(path, "_debug_render_only" not in body) for path, body in mine]

    wait_until(lambda: len(served()) >= count)  # a request is listed some time after its answer
    return sorted(served(), key=lambda found: found[1])


@pytest.mark.parametrize("model", FAMILIES)
@pytest.mark.parametrize("arguments", [chat, generate])
def test_wherever_it_was_cut_the_whole_is_what_an_undisturbed_attempt_says(
    ollama: OllamaSimulator, model: str, arguments: Callable[[str], dict[str, Any]]
) -> None:
    whole = on(ollama, arguments(model)).run(Cut(arguments(model)))
    assert whole["text"] == expected_answer(model, ASKED, COUNT)
    for after in range(1, COUNT):
        before = preempted(ollama, arguments(model), after)
        attempt = Cut(arguments(model), partial=before)
        answer = on(ollama, arguments(model)).run(attempt)
        assert (answer["text"], before.text + "".join(attempt.emitted)) == (whole["text"], whole["text"])
        assert (answer["output_tokens"], answer["continued_tokens"], answer["done_reason"]) == (COUNT, after, "length")
        assert attempt.token_counts[-1] == COUNT
        assert attempt.continued
        assert asked(ollama, attempt, 3)[-1] == ("/api/chat" if model in CHATS else "/api/generate", True)
        assert len(attempt.emitted) == COUNT - after, "no token was paid for twice"


def test_an_answer_may_be_cut_again_and_again(ollama: OllamaSimulator) -> None:
    arguments = chat("gemma4:e4b")
    before = preempted(ollama, arguments, 1)
    for count in range(2, COUNT):
        attempt = Cut(arguments, 1, before)
        with pytest.raises(AttemptInterrupted):
            on(ollama, arguments).run(attempt)
        before = PartialOutput(1, before.text + "".join(attempt.emitted), max(attempt.token_counts))
        assert before.output_tokens == count
    answer = on(ollama, arguments).run(Cut(arguments, partial=before))
    assert (answer["text"], answer["continued_tokens"]) == (expected_answer("gemma4:e4b", ASKED, COUNT), COUNT - 1)


def test_the_rest_is_begun_wherever_in_the_stream_the_connection_ended(ollama: OllamaSimulator) -> None:
    """Also inside a character of several bytes: a line that is not whole was not said."""
    arguments = chat("gemma4:e4b")
    tokens = answer_tokens("gemma4:e4b", ASKED, COUNT)
    said = b"".join(json.dumps({"message": {"content": token}}, ensure_ascii=False).encode() + b"\n" for token in tokens)
    letter = said.index("日".encode())
    for end in range(letter - 3, letter + 12):
        attempt = Cut(arguments)

        def cut_off(connection: Any, end: int = end, attempt: Cut = attempt) -> None:
            connection.sendall(OK + chunk(said[:end]))
            wait_until(lambda: attempt.token_counts[-1:] == [said[:end].count(b"\n")])
            attempt.interrupt("preempted")

        with Server(cut_off) as server, pytest.raises(AttemptInterrupted):
            Chat(BackendSettings(url=server.url), {}).run(attempt)
        before = PartialOutput(1, "".join(attempt.emitted), max(attempt.token_counts))
        assert before.text == "".join(tokens[: before.output_tokens])
        answer = on(ollama, arguments).run(Cut(arguments, partial=before))
        assert answer["text"] == expected_answer("gemma4:e4b", ASKED, COUNT)


def test_a_raw_prompt_is_continued_without_being_rendered(ollama: OllamaSimulator) -> None:
    arguments = {"model": "llama", "prompt": "Once upon", "raw": True, "options": {"num_predict": COUNT}}
    before = preempted(ollama, arguments, 5)
    attempt = Cut(arguments, partial=before)
    answer = on(ollama, arguments).run(attempt)
    assert answer["text"] == expected_answer("llama", "Once upon", COUNT)
    assert asked(ollama, attempt, 1) == [("/api/generate", True)]


def test_an_answer_that_was_complete_when_it_was_cut_is_not_asked_for_again() -> None:
    arguments = chat("gemma4:e4b")
    attempt = Cut(arguments, partial=PartialOutput(1, expected_answer("gemma4:e4b", ASKED, COUNT), COUNT))
    with Server() as server:
        answer = Chat(BackendSettings(url=server.url), {}).run(attempt)
    assert [request["at"] for request in server.requests] == ["GET /api/ps"]
    assert (answer["text"], answer["output_tokens"], attempt.emitted) == (expected_answer("gemma4:e4b", ASKED, COUNT), COUNT, [])
    assert attempt.continued


IMAGE = "aGVsbG8="


@pytest.mark.parametrize(
    ("arguments", "renders"),
    [
        (chat("qwen3-vl", format="json"), False),
        (chat("gemma4:e4b", tools=[{"type": "function", "function": {"name": "look"}}]), False),
        (chat("qwen3-vl", logprobs=True), False),
        (generate("qwen3-vl", context=[1, 2]), False),
        (generate("qwen3-vl", images=[IMAGE]), False),
        (chat("qwen3-vl", messages=[{"role": "user", "content": "look", "images": [IMAGE]}]), False),
        (chat("gemma4:e4b", think=True), False),
        (chat("gemma4:e4b", think=None), False),
        (generate("qwen3.5", think=None), False),
        (
            chat("gemma4:e4b", options={"num_predict": 4000, "num_ctx": 4096}, messages=[{"role": "user", "content": "x" * 300}]),
            True,
        ),
    ],
    ids=["format", "tools", "logprobs", "context", "images", "image", "thinks", "can think", "generate can think", "num_ctx"],
)
def test_what_would_be_another_prompt_or_begin_anew_starts_again(
    ollama: OllamaSimulator, arguments: dict[str, Any], renders: bool
) -> None:
    attempt = Cut(arguments, partial=PartialOutput(1, "Answer ", 1))
    answer = on(ollama, arguments).run(attempt)
    assert answer["text"] == "".join(attempt.emitted)
    assert "continued_tokens" not in answer
    assert not attempt.continued
    requests = asked(ollama, attempt, 1 + renders)
    assert (requests[-1], len(requests)) == ((on(ollama, arguments).path, True), 2 if renders else 1)


def test_a_model_that_cannot_think_is_continued_though_nobody_said_that_it_is_not_to(ollama: OllamaSimulator) -> None:
    arguments = chat("qwen3-vl", think=None)
    answer = on(ollama, arguments).run(Cut(arguments, partial=preempted(ollama, arguments, 3)))
    assert answer["continued_tokens"] == 3


def test_a_model_can_be_set_to_start_again(ollama: OllamaSimulator) -> None:
    arguments = chat("qwen3-vl")
    before = preempted(ollama, arguments, 3)
    models = {"qwen3-vl": ModelSettings("qwen3-vl", 2_000_000_000)}
    answer = on(ollama, arguments, models).run(Cut(arguments, partial=before))
    assert answer["continued_tokens"] == 3
    models["qwen3-vl"] = replace(models["qwen3-vl"], resume="restart")
    assert "continued_tokens" not in on(ollama, arguments, models).run(Cut(arguments, partial=before))


def test_the_words_of_another_model_are_not_continued(ollama: OllamaSimulator) -> None:
    arguments = chat("qwen3-vl")
    before = replace_model(preempted(ollama, arguments, 3), "llama:latest")
    assert "continued_tokens" not in on(ollama, arguments).run(Cut(arguments, partial=before))
    assert on(ollama, arguments).run(Cut(arguments, partial=replace_model(before, "qwen3-vl:latest")))["continued_tokens"] == 3


def replace_model(before: PartialOutput, model: str) -> PartialOutput:
    return before._replace(model=model)


# Against a server that answers word for word what the test says

BEFORE = PartialOutput(1, "Hello ", 1)
ARGUMENTS = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "think": False, "options": {"num_predict": 9}}
DONE = line(message={"content": ""}, done=True, done_reason="stop", eval_count=1)
ANSWER = OK + line(message={"content": "Hello there"}) + DONE + END
LOADED = plain(200, {"models": []})


def shown(prompt: str) -> bytes:
    return plain(200, {"message": {"role": "", "content": ""}, "done": False, "_debug_info": {"rendered_template": prompt}})


def run(server: Server) -> tuple[dict[str, Any], Cut]:
    attempt = Cut(ARGUMENTS, partial=BEFORE)
    return Chat(BackendSettings(url=server.url), {}).run(attempt), attempt


@pytest.mark.parametrize(
    "scripts",
    {
        "an older server answers the request instead": [plain(200, {"message": {"content": "Hello"}, "done": True})],
        "a server that does not want to": [plain(500, {"error": "no such template"})],
        "something else": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"],
        "a connection that ends": [lambda connection: None],
        "markers that a parser takes away": [shown("<user>Hi<bot>"), shown("<user>Hi<bot><final>Hello <end>")],
        "the second one fails": [shown("<user>Hi<bot>"), plain(500, {"error": "no"})],
        "the continuing request is refused": [
            shown("<user>Hi<bot>"),
            shown("<user>Hi<bot>Hello<end><bot>"),
            plain(400, {"error": "request (9 tokens) exceeds the available context size (8 tokens)"}),
        ],
    }.items(),
    ids=lambda found: found[0],
)
def test_where_the_server_cannot_tell_the_attempt_starts_again(scripts: tuple[str, list[Any]]) -> None:
    with Server(*scripts[1], ANSWER, LOADED, LOADED) as server:
        answer, attempt = run(server)
    assert (answer["text"], "".join(attempt.emitted), attempt.continued) == ("Hello there", "Hello there", False)
    assert [asked["options"]["num_predict"] for asked in server.requests if asked.get("_debug_render_only")] in ([1], [1, 1])
    (again,) = [asked for asked in server.requests if asked["at"] == "POST /api/chat" and asked["stream"] is True]
    assert (again["messages"], again["options"]["num_predict"]) == (ARGUMENTS["messages"], 9)


def test_the_continuing_request_has_the_same_options_and_is_not_to_be_cut_to_fit() -> None:
    with Server(shown("<user>Hi<bot>"), shown("<user>Hi<bot>Hello "), ANSWER, LOADED, LOADED) as server:
        answer, attempt = run(server)
    assert (answer["text"], attempt.continued) == ("Hello Hello there", True)
    original, _, sent = (asked for asked in server.requests if asked["at"] == "POST /api/chat")
    assert (original["messages"], sent["messages"][-1]) == (ARGUMENTS["messages"], {"role": "assistant", "content": "Hello "})
    assert (sent["options"]["num_predict"], sent["truncate"], sent["think"]) == (8, False, False)
    assert sent["keep_alive"] == original["keep_alive"]


def test_an_interruption_while_the_server_is_asked_closes_the_connection() -> None:
    attempt = Cut(ARGUMENTS, partial=BEFORE)

    def interrupting(connection: Any) -> None:
        attempt.interrupt("preempted")
        server.hold(connection)

    with Server(interrupting) as server, pytest.raises(AttemptInterrupted):
        Chat(BackendSettings(url=server.url), {}).run(attempt)
    assert server.hung_up.is_set()
    assert len(server.requests) == 1


def test_a_process_that_was_suspended_asks_for_no_prompt_once_its_lease_may_have_ended() -> None:
    class Suspended(Cut):
        looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks > 1:
                self.interrupt("lease_lost")
            super().check()

    with Server() as server, pytest.raises(AttemptInterrupted):
        Chat(BackendSettings(url=server.url), {}).run(Suspended(ARGUMENTS, partial=BEFORE))
    assert (server.connections, server.requests) == (1, [])


def test_the_load_during_which_the_server_was_asked_counts_as_loading_and_as_waiting() -> None:
    with OllamaSimulator(SimulatedCard(speed=20), list(FAMILIES.values())) as ollama:
        arguments = chat("qwen3-vl")
        answer = on(ollama, arguments).run(Cut(arguments, partial=PartialOutput(1, expected_answer("qwen3-vl", ASKED, 3), 3)))
        assert (answer["continued_tokens"], ollama.card.load_count) == (3, 1)
        load_s = min(1.0, 2e9 / 1e10) / 20  # at least
        assert load_s <= answer["load_s"] <= answer["first_token_s"]


def test_an_answer_that_the_caller_began_is_continued_as_one() -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Dear "}], "options": {}}
    prompts = iter(["<user>Hi<bot>Dear ", "<user>Hi<bot>Dear Hello "])
    found = continuation(asked, BEFORE, thinks=lambda _: False, rendered=lambda _: next(prompts))
    assert found is not None
    assert found.path == "/api/chat"
    assert json.dumps(dict(found.body or {})["messages"][-1]) == '{"role": "assistant", "content": "Dear Hello "}'


def test_a_text_with_characters_that_stand_for_broken_bytes_is_not_continued() -> None:
    asked = {"messages": [], "options": {}}
    broken = PartialOutput(1, "Hello \ufffd", 2)
    assert continuation(asked, broken, thinks=lambda _: False, rendered=lambda _: "<user>") is None
