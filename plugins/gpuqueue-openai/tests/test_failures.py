"""Every way in which a server fails is classified, and its error says what, where and what to do; none shows the key."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from gpuqueue_openai.verbs import Chat, Embed
from openai_scene.scripted import DONE, Reply, event, plain, refused, said, streamed

from gpuqueue.plugins import AttemptInterrupted, BackendUnavailable, CallerFault, OutOfMemory, RunnerCrashed
from gpuqueue.testing import RecordedAttempt, wait_until
from gpuqueue.testing.attempts import Bench
from gpuqueue.testing.waiting import DEADLINE_S

ASKED = [{"role": "user", "content": "count"}]
LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}  # llama.cpp's words
LIMIT = dict.fromkeys(("connect_s", "first_token_s", "gap_s", "total_s"), DEADLINE_S)


@pytest.fixture
def attempt():
    return RecordedAttempt({"model": "m", "messages": ASKED, "input": "a"})


@pytest.fixture
def run(attempt, server_at):
    """`run(url, verb=Chat, **settings)` runs one attempt there; returns its result, raises its error."""
    bench = Bench()

    def run(url, verb=Chat, **settings):
        value, error = bench.start(verb(server_at(url, **{**LIMIT, **settings})), attempt).result(timeout=DEADLINE_S)
        if error is not None:
            raise error
        return value

    yield run
    bench.close()


def ends_with(run, url, kind, words, **settings):
    """Expect an attempt to end with exactly this class of error, and these words in it."""
    with pytest.raises(kind) as caught:
        run(url, **settings)
    assert words in str(caught.value)
    return caught.value


# --- answers that end too soon, or wrong ---


def test_a_stream_that_ends_without_done_is_no_answer(run, attempt, scripted):
    ends_with(run, scripted(streamed(said("one"), said("two"))).url, RunnerCrashed, "the stream has no [DONE]")
    assert attempt.emitted == ["one", "two"]


def test_done_counts_also_where_no_end_of_line_follows(run, scripted):
    assert run(scripted(streamed(said("one"), b"data: [DONE]")).url)["text"] == "one"


def test_what_comes_after_done_is_not_waited_for(run, scripted):
    server = scripted(streamed(said("one"), DONE, then="mute"))
    assert run(server.url)["text"] == "one"
    assert server.left.wait(DEADLINE_S)


def test_a_connection_that_is_cut_in_an_answer_fails_the_attempt_when_the_server_is_still_there(run, scripted):
    cut = scripted(streamed(said("one"), then="cut"))
    ends_with(run, cut.url, RunnerCrashed, "dropped the connection in the middle of its answer")


def test_a_connection_that_is_cut_before_the_answer_says_that_the_server_is_away(run, scripted):
    ends_with(run, scripted(Reply(begins=False, then="cut")).url, BackendUnavailable, "without an answer")


@pytest.mark.parametrize(
    "piece",
    [
        event(error={"message": "the cache is full", "code": 500}),
        b'error: {"message": "the cache is full", "code": 500}\n\n',
        b'event: error\ndata: {"message": "the cache is full"}\n\n',
        event(object="error", message="the cache is full", code=500),
        b'{"error": {"message": "the cache is full"}}\n',
    ],
)
def test_an_error_in_the_stream_fails_the_attempt(run, attempt, scripted, piece):
    ends_with(run, scripted(streamed(said("one"), piece, DONE)).url, RunnerCrashed, "model 'm': the cache is full (status 500)")
    assert attempt.emitted == ["one"]


@pytest.mark.parametrize(
    ("inner", "kind"),
    [
        ({"code": 400, "message": "too long"}, CallerFault),
        ({"code": 503, "message": "draining"}, BackendUnavailable),
        ({"code": "server_error", "message": "CUDA out of memory. Tried to allocate 2 GiB"}, OutOfMemory),
    ],
)
def test_an_error_in_the_stream_is_classed_by_the_code_in_it(run, scripted, inner, kind):
    ends_with(run, scripted(streamed(event(error=inner))).url, kind, inner["message"])


@pytest.mark.parametrize("body", [b"<html>Welcome to nginx</html>\n", b"data: [1]\n", b"data: {broken\n"])
def test_an_answer_in_another_language_says_so(run, scripted, body):
    ends_with(run, scripted(streamed(body)).url, RunnerCrashed, body.decode().removeprefix("data: ").strip())


def test_a_web_page_in_the_place_of_a_stream_points_to_the_url(run, scripted):
    ends_with(run, scripted(Reply((b"<html></html>",))).url, RunnerCrashed, "check that url in [openai]")


def test_embeddings_that_are_none_are_a_failure(run, scripted):
    ends_with(run, scripted(Reply((b"<html></html>",))).url, RunnerCrashed, "check that url in [openai]", verb=Embed)
    ends_with(run, scripted(plain({"data": [{"index": 0}]})).url, RunnerCrashed, "without embeddings", verb=Embed)
    ends_with(run, scripted(plain({"error": {"message": "no"}})).url, RunnerCrashed, "no (status 500)", verb=Embed)


# --- limits ---


def test_a_server_that_does_not_begin_is_away(run, scripted):
    server = scripted(Reply(begins=False, then="mute"))
    ends_with(run, server.url, BackendUnavailable, "within 0.05 s; raise first_token in [openai]", first_token_s=0.05)
    # On a busy machine the time may be over before the server has read the request.
    assert not server.requests or server.left.wait(DEADLINE_S)


@pytest.mark.parametrize("nothing", [b": still here\n\n", event(choices=[{"delta": {"role": "assistant", "content": ""}}])])
def test_comments_and_empty_pieces_are_not_yet_the_answer(run, scripted, nothing):
    server = scripted(streamed(*[nothing] * 3, then="mute"))
    ends_with(run, server.url, BackendUnavailable, "did not start its answer", first_token_s=0.05, gap_s=0.01)


def test_a_gap_in_an_answer_fails_the_attempt(run, attempt, scripted):
    ends_with(run, scripted(streamed(said("one"), then="mute")).url, RunnerCrashed, "nothing for 0.05 s (gap in", gap_s=0.05)
    assert attempt.emitted == ["one"]


def test_the_gap_is_no_limit_for_what_comes_before_the_answer(run, attempt, scripted):
    role = event(choices=[{"delta": {"role": "assistant", "content": ""}}])

    def one_when_the_role_has_come():
        wait_until(lambda: attempt.token_counts, "the first piece is taken")
        return said("one")

    server = scripted(streamed(role, one_when_the_role_has_come, then="mute"))
    ends_with(run, server.url, RunnerCrashed, "(gap in", gap_s=1e-6)
    assert attempt.emitted == ["one"]


def test_a_gap_in_embeddings_fails_the_attempt(run, scripted):
    server = scripted(Reply((b'{"data": [',), then="mute"))
    ends_with(run, server.url, RunnerCrashed, "nothing for 0.05 s (gap in", gap_s=0.05, verb=Embed)


def test_an_answer_that_takes_too_long_as_a_whole_fails_the_attempt(run, scripted):
    server = scripted(streamed(said("one"), then="mute"))
    ends_with(run, server.url, RunnerCrashed, "not finished its answer after 0.05 s; limit", total_s=0.05)


def test_a_host_that_takes_no_connection_is_away(run):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        ends_with(run, url, BackendUnavailable, "within 0.1 s (connect); check the host and the network", connect_s=0.1)


def test_a_server_that_is_not_there_is_told_by_its_url_without_its_password(run, scripted):
    server = scripted(streamed(DONE))
    server.go_away()
    error = ends_with(
        run,
        server.url.replace("//", "//ann:secret@"),
        BackendUnavailable,
        f"{server.url} refused the connection; start the server",
    )
    assert (error.backend, "secret" in str(error)) == ("openai", False)


def test_a_name_that_nobody_has_is_told(run):
    error = ends_with(run, "http://ann:pw@nobody.invalid/v1", BackendUnavailable, "http://nobody.invalid/v1 cannot be reached")
    assert "pw" not in str(error)


# --- refusals ---


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_server_that_is_busy_is_unavailable(run, scripted, status):
    error = ends_with(run, scripted(refused(status, "come back")).url, BackendUnavailable, f"come back (status {status})")
    assert (error.backend, error.retry_after_s) == ("openai", None)


def test_an_account_without_credit_is_the_callers_fault_though_its_status_is_that_of_a_busy_server(run, scripted):
    body = {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"}}
    ends_with(run, scripted(plain(body, 429)).url, CallerFault, "has no credit left")


def test_a_server_that_loads_its_model_is_unavailable(run, scripted):
    ends_with(run, scripted(plain(LOADING, 503)).url, BackendUnavailable, "Loading model (status 503)")


@pytest.mark.parametrize(
    ("header", "waits_s"),
    [("7", 7), ("0", 1), ("999999999", 3600), ("9" * 400, 3600), ("soon", None), ("", None), ("-5", None), ("Mon, 99", None)],
)
def test_a_server_says_when_it_may_be_asked_again(run, scripted, header, waits_s):
    server = scripted(refused(429, "slower", Retry_After=header))
    assert ends_with(run, server.url, BackendUnavailable, "slower").retry_after_s == waits_s


def test_it_may_say_that_as_a_date(run, scripted):
    at = datetime.now(UTC) + timedelta(minutes=10)
    server = scripted(refused(503, "later", Retry_After=format_datetime(at, usegmt=True)))
    assert 500 < ends_with(run, server.url, BackendUnavailable, "later").retry_after_s <= 600


@pytest.mark.parametrize("status", [400, 405, 413, 422, 501])
def test_a_request_that_is_refused_is_the_callers_fault(run, scripted, status):
    ends_with(run, scripted(refused(status, "no")).url, CallerFault, f"no (status {status}); change the request")


@pytest.mark.parametrize(
    ("status", "key", "words"),
    [
        (401, "sk-key", "The key was rejected; set api_key in [openai], or GPUQUEUE_OPENAI_API_KEY"),
        (401, "", "The server needs a key; set api_key in [openai], or GPUQUEUE_OPENAI_API_KEY"),
        (403, "sk-key", "change api_key in [openai], or GPUQUEUE_OPENAI_API_KEY"),
    ],
)
def test_a_key_that_is_not_accepted_ends_the_job_and_is_not_shown(run, scripted, status, key, words):
    server = scripted(refused(status, "bad key sk-key given"))
    error = ends_with(run, server.url, CallerFault, words, api_key=key)
    assert ("sk-key" in str(error)) == (not key)


def test_the_key_and_the_request_are_sent_and_nothing_else_of_the_job_is_changed(run, scripted):
    server = scripted(streamed(said("one"), DONE))
    run(server.url, api_key="sk-key")
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer sk-key"
    given = {"model": "m", "messages": ASKED, "input": "a"}
    assert request.body == {**given, "stream": True, "stream_options": {"include_usage": True}}


def test_no_authorization_is_sent_where_there_is_no_key(run, scripted):
    server = scripted(streamed(said("one"), DONE))
    run(server.url)
    assert "Authorization" not in server.requests[0].headers


def test_an_unknown_model_is_the_callers_fault(run, scripted):
    server = scripted(refused(404, "The model `m` does not exist."))
    ends_with(run, server.url, CallerFault, "Check the job's model, and url in [openai], which usually ends in /v1")


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("words", ["CUDA out of memory", "failed to allocate buffer", "insufficient system resources"])
def test_memory_that_does_not_suffice_is_told_apart(run, scripted, status, words):
    ends_with(run, scripted(refused(status, words)).url, OutOfMemory, "see vram in [openai]")


def test_another_failure_of_the_server_is_its_crash(run, scripted):
    ends_with(run, scripted(refused(500, "boom")).url, RunnerCrashed, "boom (status 500)")


def test_a_redirection_points_to_the_url(run, scripted):
    ends_with(run, scripted(Reply(status=307)).url, BackendUnavailable, "a redirect (status 307); correct url in [openai]")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "not so"}, "not so"),  # FastAPI's
        ({"object": "error", "message": "not so"}, "not so"),
        ({"error": "not so"}, "not so"),
        ("x" * 5000, "x" * 1000 + " (status"),
        ({}, "no reason given"),
    ],
)
def test_the_words_of_a_refusal_are_found_in_every_servers_form(run, scripted, body, words):
    ends_with(run, scripted(plain(body, 422)).url, CallerFault, words)


# --- what a stream may look like ---


def test_the_call_of_a_tool_is_put_together_from_its_pieces(run, attempt, scripted):
    def called(**piece):
        return event(choices=[{"index": 0, "delta": {"tool_calls": [piece]}}])

    answer = streamed(
        called(index=0, id="a1", type="function", function={"name": "weather", "arguments": ""}),
        called(index=0, function={"arguments": '{"city":'}),
        called(index=1, id="b2", type="function", function={"name": "time", "arguments": "{}"}),
        called(index=0, function={"arguments": ' "Rome"}'}),
        event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]),
        DONE,
    )
    result = run(scripted(answer).url)
    assert result["tool_calls"] == [
        {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"id": "b2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    assert (result["done_reason"], result["text"], attempt.emitted) == ("tool_calls", "", [])


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_come_under_either_name(run, scripted, name):
    thought = event(choices=[{"index": 0, "delta": {name: "hmm"}}])
    result = run(scripted(streamed(thought, said("one"), DONE)).url)
    assert (result["thinking"], result["text"]) == ("hmm", "one")


def test_pieces_are_put_together_wherever_the_network_cuts_them(run, attempt, scripted):
    whole = said("zwölf\u2028三") + said("!", finish_reason="stop") + event(choices=[], usage={"completion_tokens": 9}) + DONE
    whole = whole.replace(b"\\u2028", "\u2028".encode()).replace(b"\n", b"\r\n")
    result = run(scripted(streamed(*(whole[at : at + 1] for at in range(len(whole))))).url)
    assert attempt.emitted == ["zwölf\u2028三", "!"]
    assert (result["output_tokens"], result["done_reason"], attempt.token_counts[-1]) == (9, "stop", 9)


def test_comments_names_and_numbers_of_events_are_passed_over(run, scripted):
    pieces = (b": hello\n", b"id: 7\nretry: 100\nevent: message\n", said("one"), b":\n\n", DONE)
    assert run(scripted(streamed(*pieces)).url)["text"] == "one"


def test_pieces_count_as_tokens_where_the_server_does_not_count(run, scripted):
    result = run(scripted(streamed(said("one"), said("two"), said("", finish_reason="stop"), DONE)).url)
    assert (result["output_tokens"], result["prompt_tokens"], result["model"]) == (2, 0, "scripted")


def test_vectors_are_put_into_the_order_of_their_texts(run, scripted):
    vectors = [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.0]}]
    result = run(scripted(plain({"data": vectors, "usage": {"prompt_tokens": 3}})).url, verb=Embed)
    assert (result["embeddings"], result["prompt_tokens"], result["model"]) == ([[0.0], [1.0]], 3, "m")


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"messages": ASKED, "stream": False}, "a job cannot set stream, because every answer is streamed"),
        ({"messages": ASKED, "stream_options": {}}, "a job cannot set stream_options"),
        ({"messages": ASKED, "n": 2}, "n must be 1, not 2, because a job has one answer; enqueue 2 jobs"),
        ({"model": "m"}, "openai.chat needs the argument 'messages'"),
        ({"messages": None}, "openai.chat needs the argument 'messages'"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_before_anybody_is_asked(server_at, arguments, words):
    with pytest.raises(CallerFault, match=words.replace("(", r"\(")):
        Chat(server_at("http://127.0.0.1:9/v1")).body(arguments)


def test_one_answer_may_be_asked_for_by_number_and_none_is_left_out(server_at):
    body = Chat(server_at("http://127.0.0.1:9/v1")).body({"messages": ASKED, "n": 1, "seed": None})
    assert (body["n"], "seed" in body) == (1, False)


def test_times_are_told(run, scripted):
    began_s = time.monotonic()
    result = run(scripted(streamed(said("one"), DONE)).url)
    assert 0 < result["first_token_s"] <= result["total_s"] <= time.monotonic() - began_s


# --- what an end leaves behind ---


@pytest.mark.parametrize("last", [DONE, event(error={"message": "no"}), b"<html>\n", said("interrupted")])
def test_an_answer_that_ends_before_its_stream_does_is_heard_no_further_and_leaves_the_collector_nothing_to_close(
    attempt, scripted, server_at, last
):
    left, emitted = [], []
    server = scripted(streamed(said("one"), last, *[said("late")] * 3, then="mute"))

    def emit(text):
        emitted.append(text)
        if text == "interrupted":
            attempt.interrupt("cancelled")
        attempt.check()

    async def run():
        sys.set_asyncgen_hooks(finalizer=left.append)  # called for a generator that is forgotten before its end
        with suppress(RunnerCrashed, AttemptInterrupted):
            await Chat(server_at(server.url, **LIMIT)).arun(attempt)
        gc.collect()

    attempt.emit = emit
    asyncio.run(run())
    assert left == []
    assert "one" in emitted and "late" not in emitted
