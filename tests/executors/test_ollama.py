"""Running a job on Ollama: over real HTTP, against a server that answers word for word what the test says."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from gpuqueue.contract.executor import AttemptInterrupted, Executor
from gpuqueue.contract.hookspecs import RegisterExecutorsDetails
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.device import Resident
from gpuqueue.domain.errors import BackendUnavailable, CallerFault, ConfigurationError, ExecutionError, OutOfMemory, RunnerCrashed
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings
from gpuqueue.executors.ollama import KEEP_ALIVE_S, Chat, Embed, Generate, OllamaVerbs
from gpuqueue.executors.ollama_client import ConnectionRefused, OllamaClient
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama import NOMIC_EMBED_TEXT, OllamaSimulator, expected_answer, expected_embedding
from gpuqueue.testing import RecordedAttempt
from gpuqueue.testing.waiting import DEADLINE_S, wait_until
from tests.executors.ollama_server import END, OK, Server, chunk, line, plain

GEMMA = ModelSettings("gemma4:e4b", 4_500_000_000, {"num_ctx": 4096, "temperature": 0.7})
NOMIC = ModelSettings("nomic-embed-text", 500_000_000, {"shift": False})
MODELS = {model.name: model for model in (GEMMA, NOMIC)}


class Context(RecordedAttempt):
    """An attempt's context, as a worker would give it."""

    def __init__(self, arguments: Mapping[str, Any], deadline_s: float | None = None, device: str = "gpu0") -> None:
        super().__init__(arguments, task="ollama.generate", queue="ai-realtime", placement=Placement(device, 4_500_000_000))
        self.deadline_s = deadline_s

    def interrupt(self, why: Any = "cancelled") -> None:
        super().interrupt(why)


DONE = line(response="", done=True, done_reason="stop")


def settings(server: Server, **changes: float) -> BackendSettings:
    return replace(
        BackendSettings(url=server.url, connect_s=DEADLINE_S, first_token_s=DEADLINE_S, gap_s=DEADLINE_S, total_s=DEADLINE_S),
        **changes,
    )


def generate(server: Server, context: Context | None = None, **changes: float) -> dict[str, Any]:
    context = context or Context({"model": "gemma4:e4b", "prompt": "Hello"})
    return Generate(settings(server, **changes), MODELS).run(context)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# The answer


def test_the_pieces_are_emitted_as_they_come_and_the_figures_are_in_seconds() -> None:
    context = Context({"model": "gemma4:e4b", "prompt": "Hello"})
    last = line(
        model="gemma4:e4b",
        response="",
        done=True,
        done_reason="length",
        context=[5, 1, 4],
        total_duration=651_810_911,
        load_duration=618_077_757,
        prompt_eval_count=7,
        prompt_eval_duration=12_500_000,
        eval_count=2,
        eval_duration=30_723_810,
    )
    with Server(OK + line(response="tok0 ", done=False) + line(response="tok1", done=False) + last + END) as server:
        result = generate(server, context)

    assert context.emitted == ["tok0 ", "tok1"]
    assert 0 < result.pop("first_token_s") < 10
    assert result == {
        "text": "tok0 tok1",
        "model": "gemma4:e4b",
        "done_reason": "length",
        "prompt_tokens": 7,
        "output_tokens": 2,
        "load_s": 0.618077757,
        "prompt_s": 0.0125,
        "generate_s": 0.03072381,
        "total_s": 0.651810911,
        "context": [5, 1, 4],
    }


def test_a_figure_that_ollama_leaves_out_is_zero() -> None:
    with Server(OK + line(response="x", done=False) + DONE + END) as server:
        result = generate(server)

    assert [result[key] for key in ("prompt_tokens", "output_tokens", "load_s", "prompt_s", "generate_s", "total_s")] == [0] * 6
    assert not {"thinking", "tool_calls", "context", "spilled_bytes"} & result.keys()


def test_lines_may_come_in_any_pieces_and_the_last_without_its_newline() -> None:
    whole = b'{"response":"a\\n","done":false}\n\n{"response":"\xc3\xa9","done":false}\n{"response":"","done":true}'
    with Server(OK + b"".join(chunk(bytes([byte])) for byte in whole) + END) as server:
        assert generate(server)["text"] == "a\né"


def test_a_chat_keeps_thinking_and_tool_calls_apart_from_the_text() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Bangkok"}}}
    context = Context({"model": "gemma4:e4b", "messages": [{"role": "user", "content": "Hi"}], "think": True})
    answer = (
        line(message={"role": "assistant", "content": "", "thinking": "Hm, "}, done=False)
        + line(message={"role": "assistant", "content": "", "thinking": "well"}, done=False)
        + line(message={"role": "assistant", "content": "Hello", "tool_calls": [call]}, done=False)
        + line(message={"role": "assistant", "content": ""}, done=True, done_reason="stop")
    )
    with Server(OK + answer + END) as server:
        result = Chat(settings(server), MODELS).run(context)

    assert server.requests[0]["at"] == "POST /api/chat"
    assert (result["text"], result["thinking"], result["tool_calls"]) == ("Hello", "Hm, well", [call])
    assert context.emitted == ["Hello"]


def test_an_embedding_is_one_object_whatever_its_size() -> None:
    vectors = [[0.25] * 4000] * 20
    with Server(plain(200, {"model": "nomic-embed-text", "embeddings": vectors, "prompt_eval_count": 2})) as server:
        result = Embed(settings(server), MODELS).run(Context({"model": "nomic-embed-text", "input": ["a"], "dimensions": 4000}))

    assert result == {
        "embeddings": vectors,
        "model": "nomic-embed-text",
        "prompt_tokens": 2,
        "load_s": 0.0,
        "total_s": 0.0,
    }


def test_the_part_of_a_model_that_did_not_fit_the_card_is_reported() -> None:
    loaded = {"models": [{"name": "nomic-embed-text:latest", "size": 900, "size_vram": 600}]}
    with Server(plain(200, {"embeddings": []}), plain(200, loaded)) as server:
        result = Embed(settings(server), MODELS).run(Context({"model": "nomic-embed-text", "input": ""}))

    assert result["spilled_bytes"] == 300


def test_an_answer_is_not_lost_when_the_list_of_loaded_models_cannot_be_had() -> None:
    with Server(OK + line(response="x", done=False) + DONE + END, plain(500, {"error": "no"})) as server:
        assert generate(server)["text"] == "x"


# The request


def test_a_request_always_streams_has_the_configured_options_and_a_short_keep_alive() -> None:
    with Server(OK + DONE + END) as server:
        generate(server, Context({"model": "gemma4:e4b", "prompt": "Hello", "system": None, "options": {"seed": 1}}))

    asked = server.requests[0]
    assert asked.pop("headers")["content-type"] == "application/json"
    assert asked == {
        "at": "POST /api/generate",
        "model": "gemma4:e4b",
        "prompt": "Hello",
        "options": {"num_ctx": 4096, "temperature": 0.7, "seed": 1},
        "keep_alive": KEEP_ALIVE_S,
        "stream": True,
    }


def test_a_device_that_keeps_models_warm_has_the_request_say_so() -> None:
    executor = Generate(BackendSettings(), MODELS, [DeviceSettings("gpu0", 1, keep_warm_s=600)])

    def keep_alive(device: str) -> Any:
        return executor.body({"model": "gemma4:e4b", "prompt": ""}, Placement(device, 1))["keep_alive"]

    assert (keep_alive("gpu0"), keep_alive("gpu1")) == (600, KEEP_ALIVE_S)


def test_where_it_is_decided_for_each_job_the_request_says_how_long_its_placement_keeps_the_model() -> None:
    executor = Generate(BackendSettings(), MODELS, [DeviceSettings("gpu0", 1, keep_warm_s="auto")])

    def keep_alive(placement: Placement) -> Any:
        return executor.body({"model": "gemma4:e4b", "prompt": ""}, placement)["keep_alive"]

    assert keep_alive(Placement("gpu0", 1, keep_warm_s=12.5)) == 12.5
    assert keep_alive(Placement("gpu0", 1)) == KEEP_ALIVE_S, "nothing is known yet: only if the worker dies"


def test_a_job_chooses_its_own_sampling_but_may_repeat_a_pinned_option() -> None:
    body = Generate(BackendSettings(), MODELS).body(
        {"model": "gemma4:e4b", "prompt": "", "options": {"temperature": 0, "num_ctx": 4096}}, None
    )

    assert body["options"] == {"num_ctx": 4096, "temperature": 0}


@pytest.mark.parametrize("model", ["gemma4:e4b", "GEMMA4:E4B", "library/gemma4:e4b"])
def test_another_value_of_a_pinned_option_is_the_callers_fault_and_names_both(model: str) -> None:
    with pytest.raises(CallerFault, match=r"num_ctx = 8192 would .* num_ctx = 4096"):
        Generate(BackendSettings(), MODELS).body({"model": model, "prompt": "", "options": {"num_ctx": 8192}}, None)


def test_shift_is_pinned_like_the_others_and_sent_beside_the_options() -> None:
    executor = Generate(BackendSettings(), MODELS)
    asked = {"model": "nomic-embed-text:latest", "prompt": ""}

    body = executor.body(asked, None)
    assert (body["shift"], body["options"]) == (False, {})
    with pytest.raises(CallerFault, match="shift = True"):
        executor.body({**asked, "shift": True}, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "missing argument 'model'"),
        ({"model": "m"}, "missing argument 'prompt'"),
        ({"model": "m", "promt": ""}, "unknown argument 'promt' (did you mean 'prompt'?)"),
        ({"model": "m", "prompt": "", "stream": False}, "unknown argument 'stream'"),
        ({"model": "m", "prompt": "", "keep_alive": -1}, "set keep_warm for the device"),
        ({"model": "m", "prompt": "", "options": [1]}, "options must be a mapping, not [1]"),
    ],
)
def test_arguments_that_the_verb_does_not_have_are_the_callers_fault(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(CallerFault) as caught:
        Generate(BackendSettings(), MODELS).body(arguments, None)

    assert words in str(caught.value)


# The classes of failure

REFUSALS: list[tuple[int, Any, type[ExecutionError], str]] = [
    (404, {"error": "model 'gemma4:e4b' not found"}, CallerFault, "ollama pull gemma4:e4b"),
    (400, {"error": '"gemma4:e4b" does not support thinking'}, CallerFault, "does not support thinking"),
    (500, {"error": 'option "num_ctx" must be of type integer'}, CallerFault, "must be of type integer"),
    (500, {"error": 'invalid format: "\\"xml\\""'}, CallerFault, "invalid format"),
    (400, {"error": '{"error":{"code":400,"message":"exceeds the context size"}}'}, CallerFault, ": exceeds the context size"),
    (405, b"405 method not allowed", CallerFault, "405 method not allowed"),
    (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}, BackendUnavailable, "server busy"),
    (429, {"error": "too many requests"}, BackendUnavailable, "too many requests"),
    (408, b"", BackendUnavailable, "no reason given"),
    (502, b"<html>Bad Gateway</html>", BackendUnavailable, "Bad Gateway"),
    (301, b"", BackendUnavailable, "not an Ollama"),
    (
        500,
        {"error": "llama-server process has terminated: exit status 1: cudaMalloc failed: out of memory\nggml"},
        OutOfMemory,
        "cudaMalloc failed: out of memory",
    ),
    (500, {"error": "llama runner process has terminated: cudaMalloc failed: out of memory"}, OutOfMemory, "out of memory"),
    (500, {"error": "model requires more system memory (9 GiB) than is available (7 GiB)"}, OutOfMemory, "more system memory"),
    (500, {"error": "timed out waiting for llama runner to start"}, RunnerCrashed, "timed out waiting"),
    (500, {"error": "an error was encountered while running the model: CUDA error: unspecified"}, RunnerCrashed, "CUDA error"),
    (200, b"<html>Hello</html>", RunnerCrashed, "did not answer in JSON"),
    (200, b"", RunnerCrashed, "ended its answer before it was done"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), REFUSALS, ids=[str(case[1])[:40] for case in REFUSALS])
def test_each_refusal_has_its_class_and_says_what_where_and_which_model(
    status: int, body: Any, kind: type[ExecutionError], words: str
) -> None:
    with Server(plain(status, body)) as server, pytest.raises(ExecutionError) as caught:
        generate(server)

    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert server.url in str(caught.value)
    assert status == 301 or "gemma4:e4b" in str(caught.value)


MID_STREAM: list[tuple[bytes, type[ExecutionError], str]] = [
    (line(error="an error was encountered while running the model: CUDA error") + END, RunnerCrashed, "CUDA error"),
    (line(error="cudaMalloc failed: out of memory") + END, OutOfMemory, "out of memory"),
    (END, RunnerCrashed, "ended its answer before it was done"),
    (line(response="", done=False) + END, RunnerCrashed, "ended its answer before it was done"),
    (b"", RunnerCrashed, "dropped the connection during its answer"),
    (b"zz", RunnerCrashed, "dropped the connection during its answer"),
    (chunk(b"{nonsense\n"), RunnerCrashed, "did not answer in JSON"),
]


@pytest.mark.parametrize(("rest", "kind", "words"), MID_STREAM)
def test_an_answer_that_breaks_in_the_middle_has_its_class(rest: bytes, kind: type[ExecutionError], words: str) -> None:
    context = Context({"model": "gemma4:e4b", "prompt": "Hello"})
    with Server(OK + line(response="begun", done=False) + rest) as server, pytest.raises(ExecutionError) as caught:
        generate(server, context)

    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert context.emitted == ["begun"]


def test_an_embedding_that_is_cut_off_is_a_crash() -> None:
    with (
        Server(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"embeddings":[[1,') as server,
        pytest.raises(RunnerCrashed, match="dropped the connection"),
    ):
        Embed(settings(server), MODELS).run(Context({"model": "nomic-embed-text", "input": ""}))


def test_nothing_listening_is_told_apart_and_says_how_to_start_it() -> None:
    url = closed_port()
    with pytest.raises(ConnectionRefused, match="ollama serve") as caught:
        Generate(BackendSettings("spare", url), MODELS).run(Context({"model": "m", "prompt": ""}))

    assert (caught.value.code, caught.value.backend) == ("unavailable", "spare")
    assert url in str(caught.value)


def test_a_connection_dropped_before_any_answer_means_that_the_backend_is_away() -> None:
    with Server(b"") as server, pytest.raises(BackendUnavailable, match="without an answer") as caught:
        generate(server)

    assert not isinstance(caught.value, ConnectionRefused)


def test_a_connection_that_is_not_accepted_in_time_means_that_the_backend_is_away() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        # With its backlog full, the kernel leaves further connections unanswered.
        with socket.create_connection(full.getsockname()), pytest.raises(BackendUnavailable, match=r"within 0\.05 s") as caught:
            Generate(BackendSettings(url=url, connect_s=0.05, first_token_s=0.05), MODELS).run(
                Context({"model": "m", "prompt": ""})
            )

    assert not isinstance(caught.value, ConnectionRefused)


# The limits


def test_without_any_answer_within_first_token_s_the_backend_is_away_however_short_the_gap() -> None:
    with Server() as server:
        server.scripts.append(server.hold)
        with pytest.raises(BackendUnavailable, match=r"did not start to answer for model 'gemma4:e4b' within 0\.1 s"):
            generate(server, first_token_s=0.1, gap_s=0.001)

    assert server.hung_up.is_set()


def test_a_gap_in_the_answer_longer_than_gap_s_is_a_crash() -> None:
    def stall(connection: socket.socket) -> None:
        connection.sendall(OK + line(response="x", done=False))
        server.hold(connection)

    with Server(stall) as server, pytest.raises(RunnerCrashed, match=r"sent nothing for 0\.05 s"):
        generate(server, gap_s=0.05)

    assert server.hung_up.is_set()


def babble(connection: socket.socket) -> None:
    """Send one token after another until the client has had enough."""
    connection.sendall(OK)
    try:
        while True:
            connection.sendall(line(response="x", done=False))
    except OSError:
        pass


def test_an_answer_that_does_not_end_within_total_s_is_a_crash() -> None:
    with Server(babble) as server, pytest.raises(RunnerCrashed, match=r"not done within 0\.1 s\. .*num_predict"):
        generate(server, total_s=0.1)


@pytest.mark.parametrize("phase", ["waiting", "answering"])
def test_the_attempts_deadline_interrupts_it_in_any_phase(phase: str) -> None:
    with Server() as server:
        server.scripts.append(server.hold if phase == "waiting" else babble)
        with pytest.raises(AttemptInterrupted):
            generate(server, Context({"model": "m", "prompt": ""}, deadline_s=time.monotonic() + 0.1))


# Interruption


def test_an_interruption_while_the_model_loads_closes_the_connection() -> None:
    context = Context({"model": "gemma4:e4b", "prompt": "Hello"})

    def load(connection: socket.socket) -> None:
        context.interrupt()
        server.hold(connection)

    with Server(load) as server, pytest.raises(AttemptInterrupted, match="cancelled"):
        generate(server, context)

    assert server.hung_up.is_set()


def test_an_interruption_between_two_tokens_closes_the_connection() -> None:
    context = Context({"model": "gemma4:e4b", "prompt": "Hello"})

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + line(response="x", done=False))
        context.interrupt("stopping")
        server.hold(connection)

    with Server(answer) as server, pytest.raises(AttemptInterrupted, match="stopping"):
        generate(server, context)

    assert server.hung_up.is_set()


def test_an_interruption_is_not_taken_for_the_end_of_an_answer_that_ends_with_its_connection() -> None:
    class Impatient(Context):
        def emit(self, text: str) -> None:
            self.interrupt()

    def answer(connection: socket.socket) -> None:
        connection.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"response":"x","done":false}\n')
        server.hold(connection)

    with Server(answer) as server, pytest.raises(AttemptInterrupted):
        generate(server, Impatient({"model": "gemma4:e4b", "prompt": "Hello"}))


def test_an_interruption_that_came_while_connecting_ends_the_request() -> None:
    class Late(Context):
        @contextmanager
        def interrupted_by(self, stop: Callable[[], None]) -> Iterator[None]:
            self.interrupt()
            with super().interrupted_by(stop):
                yield

    with Server() as server:
        server.scripts.append(server.hold)
        with pytest.raises(AttemptInterrupted):
            generate(server, Late({"model": "m", "prompt": ""}))


def test_an_attempt_that_is_already_interrupted_does_not_even_connect() -> None:
    context = Context({"model": "m", "prompt": ""})
    context.interrupt()
    with Server() as server, pytest.raises(AttemptInterrupted):
        generate(server, context)

    assert server.connections == 0


def test_an_error_of_the_reader_of_the_pieces_closes_the_connection_too() -> None:
    class Full(Context):
        def emit(self, text: str) -> None:
            raise AttemptInterrupted("lease_lost")

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + line(response="x", done=False))
        server.hold(connection)

    with Server(answer) as server, pytest.raises(AttemptInterrupted, match="lease_lost"):
        generate(server, Full({"model": "m", "prompt": ""}))

    assert server.hung_up.is_set()


# The other calls


def test_a_probe_returns_the_version_and_an_old_ollama_has_none() -> None:
    with Server(plain(200, {"version": "0.33.0"}), plain(404, b"404 page not found"), plain(200, b"Ollama is running")) as server:
        client = OllamaClient(settings(server))

        assert client.probe() == "0.33.0"
        assert client.probe() == ""


def test_a_probe_of_something_else_says_that_it_is_not_an_ollama() -> None:
    with (
        Server(plain(404, b""), plain(200, b"<html>Welcome to nginx</html>")) as server,
        pytest.raises(BackendUnavailable, match="not an Ollama"),
    ):
        OllamaClient(settings(server)).probe()


def test_a_probe_gives_up_in_time() -> None:
    with Server() as server:
        server.scripts.append(server.hold)
        with pytest.raises(BackendUnavailable, match=r"did not answer GET /api/version within 0\.05 s"):
            OllamaClient(settings(server)).probe(timeout_s=0.05)


def test_the_loaded_models_and_those_on_disk_are_listed_under_their_full_names() -> None:
    listed = {"models": [{"name": "a:latest", "size": 9, "size_vram": 7, "expires_at": ""}]}
    with Server(plain(200, listed), plain(200, listed), plain(200, {"models": None}), plain(200, [1])) as server:
        client = OllamaClient(settings(server))

        assert client.residents() == (Resident("a:latest", 9, 7),)
        assert client.models() == {"a:latest": 9}
        assert client.models() == {}
        with pytest.raises(BackendUnavailable, match="not an Ollama"):
            client.residents()


def test_an_unload_is_a_generate_that_keeps_the_model_for_no_time() -> None:
    with Server(plain(200, {"done_reason": "unload"}), plain(404, {"error": "model 'x' not found"})) as server:
        client = OllamaClient(settings(server))
        client.unload("nomic-embed-text:latest")
        with pytest.raises(CallerFault):
            client.unload("x")

    asked = server.requests[0]
    assert (asked["at"], asked["model"], asked["keep_alive"]) == ("POST /api/generate", "nomic-embed-text:latest", 0)


def test_a_url_may_have_a_path_and_a_password_and_no_message_shows_the_password() -> None:
    with Server(plain(500, {"error": "no"})) as server:
        url = server.url.replace("http://", "http://ann:secret@") + "/ollama/"
        with pytest.raises(RunnerCrashed) as caught:
            OllamaClient(BackendSettings(url=url)).residents()

    assert server.requests[0]["at"] == "GET /ollama/api/ps"
    assert server.requests[0]["headers"]["authorization"].startswith("basic ")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["127.0.0.1:11434", "ftp://host", "http://", "http://host:port", ""])
def test_a_url_that_cannot_be_one_is_a_configuration_error_that_shows_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OllamaClient(BackendSettings(url=url))

    assert repr(url) in str(caught.value)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_port())
    with Server(plain(200, {"version": "0.33.0"})) as server:
        assert OllamaClient(settings(server)).probe() == "0.33.0"


def test_the_plugin_registers_the_three_verbs_of_each_backend() -> None:
    backends = (BackendSettings("big", "http://big:11434"), BackendSettings("spare", "http://spare:11434"))

    verbs = OllamaVerbs().register_executors(RegisterExecutorsDetails(backends, MODELS, ()))

    assert sorted(verbs) == sorted(
        f"{name}.{verb}" for name in ("big", "ollama", "spare") for verb in ("chat", "embed", "generate")
    )
    assert verbs["ollama.chat"] is verbs["big.chat"]
    assert sorted(OllamaVerbs().register_executors(RegisterExecutorsDetails((BackendSettings(),), {}, ()))) == [
        "ollama.chat",
        "ollama.embed",
        "ollama.generate",
    ]


# On a simulated Ollama, which behaves as a whole like the real one


@pytest.fixture
def ollama() -> Iterator[OllamaSimulator]:
    with OllamaSimulator(SimulatedCard(speed=100), max_loaded=1) as ollama:
        yield ollama
    gc.collect()


def on(ollama: OllamaSimulator, **changes: float) -> BackendSettings:
    return replace(BackendSettings(url=ollama.url), **changes)


def asking(model: str = "gemma4:e4b", count: int = 20) -> Context:
    return Context({"model": model, "prompt": "Revise this", "options": {"num_predict": count}})


def test_a_whole_job_runs_loading_included(ollama: OllamaSimulator) -> None:
    context = asking()
    result = Generate(on(ollama), MODELS).run(context)

    answer = expected_answer("gemma4:e4b", "Revise this", 20)
    assert (result["text"], "".join(context.emitted)) == (answer, answer)
    assert (result["output_tokens"], result["done_reason"], result["spilled_bytes"]) == (20, "length", 0)
    assert 0 < result["load_s"] < result["first_token_s"]
    assert result["load_s"] < result["total_s"]
    assert result["context"]


def test_a_whole_chat_and_a_whole_embedding_run(ollama: OllamaSimulator) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    chat = Chat(on(ollama), MODELS).run(Context({"model": "gemma4:e4b", "messages": messages, "options": {"num_predict": 5}}))
    embedded = Embed(on(ollama), MODELS).run(Context({"model": "nomic-embed-text", "input": ["a", "b"], "dimensions": 8}))

    assert chat["text"] == expected_answer("gemma4:e4b", messages, 5)
    assert embedded["embeddings"] == [expected_embedding(NOMIC_EMBED_TEXT, text, 8) for text in ("a", "b")]
    assert embedded["prompt_tokens"] > 0


def test_a_model_that_does_not_fit_beside_other_programs_spills_and_the_result_says_how_much(ollama: OllamaSimulator) -> None:
    ollama.card.take(5_000_000_000)

    assert Generate(on(ollama), MODELS).run(asking(count=2))["spilled_bytes"] > 1_000_000_000


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("out_of_memory", OutOfMemory),
        ("crash_before_first_token", RunnerCrashed),
        ("crash_mid_stream", RunnerCrashed),
        ("silent_truncation", RunnerCrashed),
        ("drop_connection", RunnerCrashed),
        ("stall", RunnerCrashed),
        ("hang", BackendUnavailable),
        ("busy", BackendUnavailable),
        ("context_exceeded", CallerFault),
    ],
)
def test_each_fault_has_its_class_and_the_next_job_runs(ollama: OllamaSimulator, fault: str, kind: type[ExecutionError]) -> None:
    executor = Generate(on(ollama), MODELS)
    executor.run(asking(count=1))
    if fault == "out_of_memory":
        OllamaClient(on(ollama)).unload("gemma4:e4b")
        wait_until(lambda: not OllamaClient(on(ollama)).residents())
    ollama.faults.add(fault)

    with pytest.raises(kind):
        Generate(on(ollama, first_token_s=0.5, gap_s=0.2), MODELS).run(asking())

    assert executor.run(asking())["output_tokens"] == 20
    assert ollama.card.overlap_count == 0


def test_an_outage_is_a_refused_connection_and_over_when_ollama_is_back(ollama: OllamaSimulator) -> None:
    ollama.go_away()
    with pytest.raises(ConnectionRefused):
        Generate(on(ollama), MODELS).run(asking())
    ollama.come_back()

    assert Generate(on(ollama), MODELS).run(asking())["output_tokens"] == 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "nope"}, "ollama pull nope"),
        ({"model": "nomic-embed-text"}, "does not support generate"),
        ({"options": {"top_k": "many"}}, "must be of type"),
        ({"format": "xml"}, "invalid format"),
    ],
)
def test_a_wrong_request_is_the_callers_fault(ollama: OllamaSimulator, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(CallerFault, match=words):
        Generate(on(ollama), MODELS).run(Context({"model": "gemma4:e4b", "prompt": "x", **arguments}))


def test_a_cancelled_job_stops_computing_and_a_cancelled_waiting_one_never_loads(ollama: OllamaSimulator) -> None:
    class Watched(Context):
        speaks = threading.Event()

        def emit(self, text: str) -> None:
            self.speaks.set()

    ollama.faults.add("stall", model="gemma4:e4b")
    speaking = Watched(asking().lease.arguments)
    waiting = [Context({"model": "nomic-embed-text", "input": "x"}) for _ in range(2)]
    ended: list[str] = []

    def run(executor: Executor, context: Context) -> None:
        try:
            executor.run(context)
        except AttemptInterrupted as error:
            ended.append(str(error))

    threads = [threading.Thread(target=run, args=(Generate(on(ollama), MODELS), speaking))]
    threads += [threading.Thread(target=run, args=(Embed(on(ollama), MODELS), context)) for context in waiting]
    threads[0].start()
    assert speaking.speaks.wait(DEADLINE_S)
    for thread in threads[1:]:
        thread.start()
    # Ollama takes one into its hand until there is room; the other stands behind it.
    wait_until(lambda: ollama.pending_count == 1)
    for context, thread in zip(waiting, threads[1:], strict=True):
        context.interrupt("in the queue")
        thread.join(DEADLINE_S)
    speaking.interrupt("between tokens")
    threads[0].join(DEADLINE_S)

    assert ended == ["in the queue", "in the queue", "between tokens"]
    wait_until(lambda: ollama.pending_count == 0 and {"/api/embed", "/api/generate"} <= {served.path for served in ollama.served})
    assert ollama.card.load_count == 1
    assert not ollama.card.computing_now
    assert all(served.client_left for served in ollama.served)


def test_an_ollama_that_goes_away_in_the_middle_of_its_answer_is_away_and_the_job_not_at_fault() -> None:
    class Departing(Context):
        def emit(self, text: str) -> None:
            simulator.go_away()

    with OllamaSimulator(SimulatedCard(speed=20)) as simulator:
        context = Departing({"model": "gemma4:e4b", "prompt": "a long answer", "options": {"num_predict": 2000}})
        with pytest.raises(BackendUnavailable):
            Generate(on(simulator), MODELS).run(context)


def test_a_process_that_was_suspended_begins_no_request_once_its_lease_may_have_ended() -> None:
    class Suspended(Context):
        """Its process is suspended after the first look, and goes on when the lease has ended."""

        looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks > 1:
                self.interrupt("lease_lost")
            super().check()

    with Server() as server:
        executor = Generate(BackendSettings(url=server.url), MODELS)
        with pytest.raises(AttemptInterrupted):
            executor.run(Suspended({"model": "gemma4:e4b", "prompt": "Hello"}))
    assert (server.connections, server.requests) == (1, [])
