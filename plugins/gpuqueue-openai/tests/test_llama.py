"""The verbs on a real llama.cpp: what they return, what they pass on, and that an interrupted answer ends there too."""

from __future__ import annotations

import pytest
from gpuqueue_openai.verbs import Chat, Complete, Embed

from gpuqueue.plugins import BackendUnavailable, CallerFault
from gpuqueue.testing import RecordedAttempt, wait_until
from gpuqueue.testing.attempts import Bench
from gpuqueue.testing.waiting import DEADLINE_S

ASKED = [{"role": "user", "content": "count"}]
COUNTED = " one two three one two"


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def run(bench):
    """`run(verb, **arguments)` runs one attempt and returns (its result, what it emitted); raises its error."""

    def run(verb, **arguments):
        attempt = RecordedAttempt(arguments)
        value, error = bench.start(verb, attempt).result(timeout=DEADLINE_S)
        if error is not None:
            raise error
        return value, attempt

    return run


def test_a_chats_answer_is_streamed_counted_and_returned(run, llama, server_at):
    result, attempt = run(Chat(server_at(llama.url)), messages=ASKED, max_tokens=5)
    assert attempt.emitted == [" one", " two", " three", " one", " two"]
    assert attempt.token_counts[-1] == 5
    times = {name: result.pop(name) for name in ("first_token_s", "total_s")}
    assert 0 < times["first_token_s"] <= times["total_s"]
    assert result.pop("prompt_tokens") > len("count")
    assert result == {"text": COUNTED, "model": "counting", "done_reason": "length", "output_tokens": 5}


def test_a_prompt_is_continued(run, llama, server_at):
    result, attempt = run(Complete(server_at(llama.url)), prompt="count", max_tokens=5)
    assert result["text"] == "".join(attempt.emitted) == COUNTED
    assert (result["done_reason"], result["output_tokens"]) == ("length", 5)
    assert result["prompt_tokens"] >= len("count")


def test_texts_become_vectors_in_their_order(run, llama, server_at):
    result, attempt = run(Embed(server_at(llama.url)), input=["a", "b", "a"])
    first, second, third = result["embeddings"]
    assert first == third != second
    assert (result["model"], attempt.emitted) == ("counting", [])
    assert result["prompt_tokens"] > 0 and result["total_s"] > 0


def test_what_a_model_thinks_is_returned_beside_its_answer(run, start_llama, server_at):
    thinking = start_llama(thinks=True)
    result, attempt = run(Chat(server_at(thinking.url)), messages=ASKED, max_tokens=7)
    assert result["thinking"] == " hmm"
    assert result["text"] == "".join(attempt.emitted)
    assert result["text"].startswith(" one two three")


@pytest.mark.parametrize(
    ("passed_on", "text"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}}, "7"),
        ({"stop": [" three"]}, " one two"),
        ({"grammar": 'root ::= "yes"'}, "yes"),  # llama.cpp's own
    ],
)
def test_an_argument_that_the_plugin_does_not_know_is_passed_on(run, llama, server_at, passed_on, text):
    result, _ = run(Chat(server_at(llama.url)), messages=ASKED, max_tokens=20, temperature=0, **passed_on)
    assert (result["text"], result["done_reason"]) == (text, "stop")


def test_logprobs_are_returned_where_they_are_asked_for(run, llama, server_at):
    result, _ = run(Chat(server_at(llama.url)), messages=ASKED, max_tokens=2, logprobs=True)
    assert [item["token"] for item in result["logprobs"]["content"]] == [" one", " two"]


@pytest.mark.parametrize("why", ["cancelled", "preempted", "timed_out"])
def test_an_interrupted_answer_ends_at_the_server_too(bench, llama, server_at, why):
    attempt = RecordedAttempt({"messages": ASKED, "max_tokens": -1})
    future = bench.start(Chat(server_at(llama.url)), attempt)
    wait_until(lambda: attempt.emitted, "the answer begins")
    assert llama.busy_count() == 1
    attempt.interrupt(why)
    assert future.result(timeout=DEADLINE_S)[1] is not None
    wait_until(lambda: llama.busy_count() == 0, "llama.cpp stops")


def test_a_server_that_dies_in_its_answer_is_away(bench, start_llama, server_at):
    mortal = start_llama()
    attempt = RecordedAttempt({"messages": ASKED, "max_tokens": -1})
    future = bench.start(Chat(server_at(mortal.url)), attempt)
    wait_until(lambda: attempt.emitted, "the answer begins")
    mortal.kill()
    error = future.result(timeout=DEADLINE_S)[1]
    assert isinstance(error, BackendUnavailable) and error.backend == "openai"
    assert "dropped the connection in the middle of its answer" in str(error)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"max_tokens": "x"}, r"max_tokens.*must be number.* \(status 400\); change the request"),
        ({"messages": [{"role": "user", "content": "a" * 2000}]}, "exceeds the available context size"),
    ],
)
def test_a_request_that_llama_refuses_is_the_callers_fault(run, llama, server_at, arguments, wrong):
    with pytest.raises(CallerFault, match=wrong):
        run(Chat(server_at(llama.url)), **{"messages": ASKED, **arguments})


def test_a_url_without_its_v1_or_of_another_path_says_so(run, llama, server_at):
    with pytest.raises(CallerFault, match=r"Not Found .*Check the job's model, and url in \[openai\], which usually ends in /v1"):
        run(Chat(server_at(llama.url.replace("/v1", "/v2"))), messages=ASKED)


def test_a_key_is_sent_and_one_that_is_missing_or_wrong_is_told(run, start_llama, server_at):
    locked = start_llama(api_key="sk-right")
    result, _ = run(Chat(server_at(locked.url, api_key="sk-right")), messages=ASKED, max_tokens=1)
    assert result["text"] == " one"
    for key, words in (("sk-wrong", "The key was rejected"), ("", "The server needs a key")):
        with pytest.raises(CallerFault, match=rf"{words}; set api_key in \[openai\], or GPUQUEUE_OPENAI_API_KEY") as caught:
            run(Chat(server_at(locked.url, api_key=key)), messages=ASKED)
        assert "sk-" not in str(caught.value)


def test_a_server_that_does_not_embed_ends_the_job(run, start_llama, server_at):
    chatty = start_llama(embeds=False)
    with pytest.raises(CallerFault, match="Start it with `--embeddings`"):
        run(Embed(server_at(chatty.url)), input="a")
