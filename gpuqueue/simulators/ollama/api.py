"""Implements Ollama's HTTP contract: paths, checks in Ollama's order, its error texts; loads and generates nothing itself."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence

from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.ollama.answers import (
    answer_tokens,
    as_text,
    expected_embedding,
    planned_raw_tokens,
    raw_embedding,
    token_count,
)
from gpuqueue.simulators.ollama.faults import WHILE_EMBEDDING, Faults
from gpuqueue.simulators.ollama.generation import NDJSON, Answer, RunnerFailed, Speaker, context_exceeded, send_failure
from gpuqueue.simulators.ollama.go_json import BadRequest, encode, read_request, timestamp
from gpuqueue.simulators.ollama.models import ModelSpec, is_valid_name, tagged
from gpuqueue.simulators.ollama.options import WrongOption, check_options, integer_option, runner_options
from gpuqueue.simulators.ollama.rendering import rendered
from gpuqueue.simulators.ollama.scheduler import BUSY, Call, LoadFailed, Scheduler, ServerBusy
from gpuqueue.simulators.ollama.server import JSON_UTF8, TEXT_UTF8, Exchange

VERSION = "0.33.0"
TOO_LONG = "the input length exceeds the context length"
STILL_TOO_LONG = "input exceeds maximum context length and cannot be truncated further"
_THINKING_TOKEN_COUNT = 4
_MODIFIED_NS = 1_780_000_000_000_000_000

Fields = Mapping[str, object]


class _Refused(Exception):
    """The request is answered with an error object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """Answers every Ollama request that the simulator knows."""

    def __init__(self, card: SimulatedCard, models: Mapping[str, ModelSpec], scheduler: Scheduler, faults: Faults) -> None:
        self._models = models
        self._scheduler = scheduler
        self._faults = faults
        self._speaker = Speaker(card, scheduler, faults)
        self._numbers = itertools.count(1)
        self._routes: dict[str, dict[str, Callable[[Exchange], None]]] = {
            "/": {"GET": self._root, "HEAD": self._root},
            "/api/version": {"GET": self._version, "HEAD": self._version},
            "/api/tags": {"GET": self._tags, "HEAD": self._tags},
            "/api/ps": {"GET": self._ps},
            "/api/show": {"POST": self._show},
            "/api/pull": {"POST": self._pull},
            "/api/generate": {"POST": self._generate},
            "/api/chat": {"POST": self._chat},
            "/api/embed": {"POST": self._embed},
            "/api/embeddings": {"POST": self._embeddings},
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer one request.

        Raises: ClientGone.
        """
        methods = self._routes.get(exchange.path)
        if methods is None:
            exchange.send(404, "text/plain", b"404 page not found")
        elif exchange.method not in methods:
            exchange.send(405, "text/plain", b"405 method not allowed")
        else:
            try:
                methods[exchange.method](exchange)
            except (BadRequest, _Refused) as refused:
                _send_error(exchange, getattr(refused, "status", 400), str(refused))
            except (WrongOption, LoadFailed) as failed:
                _send_error(exchange, 500, str(failed))
            except ServerBusy as busy:
                _send_error(exchange, 503, str(busy))

    def _root(self, exchange: Exchange) -> None:
        exchange.send(200, TEXT_UTF8, b"Ollama is running")

    def _version(self, exchange: Exchange) -> None:
        _send(exchange, {"version": VERSION})

    def _tags(self, exchange: Exchange) -> None:
        _send(
            exchange,
            {
                "models": [
                    {
                        "name": spec.tagged_name,
                        "model": spec.tagged_name,
                        "modified_at": timestamp(_MODIFIED_NS),
                        "size": spec.bytes,
                        "digest": spec.digest,
                        "details": spec.details,
                    }
                    for spec in self._models.values()
                ]
            },
        )

    def _ps(self, exchange: Exchange) -> None:
        listed = [
            {
                "name": resident.spec.tagged_name,
                "model": resident.spec.tagged_name,
                "size": resident.size_bytes,
                "digest": resident.spec.digest,
                "details": resident.spec.details,
                "expires_at": timestamp(expires_ns),
                "size_vram": resident.vram_bytes,
                "context_length": resident.options.num_ctx,
            }
            for resident, expires_ns in self._scheduler.residents()
        ]
        _send(exchange, {"models": listed})

    def _show(self, exchange: Exchange) -> None:
        fields = read_request("ShowRequest", exchange.body)
        name = str(fields.get("model") or fields.get("name") or "")
        if not name:
            raise _Refused(400, "model is required")
        spec = self._find(name, f"model '{tagged(name)}' not found")
        _send(
            exchange,
            {
                "modelfile": spec.modelfile,
                "template": "{{ .Prompt }}",
                "details": spec.details,
                "model_info": spec.show_info(),
                "capabilities": list(spec.capabilities),
                "modified_at": timestamp(_MODIFIED_NS),
            },
        )

    def _pull(self, exchange: Exchange) -> None:
        fields = read_request("PullRequest", exchange.body)
        name = str(fields.get("model") or fields.get("name") or "")
        if not is_valid_name(name):
            raise _Refused(400, "invalid model name")
        known = tagged(name) in self._models
        last = {"status": "success"} if known else {"error": "pull model manifest: file does not exist"}
        if fields.get("stream", True) is not True:
            exchange.send(200 if known else 500, JSON_UTF8, encode(last))
            return
        exchange.send_chunk(NDJSON, encode({"status": "pulling manifest"}) + b"\n")
        exchange.send_chunk(NDJSON, encode(last) + b"\n")
        exchange.end_stream(NDJSON)

    def _generate(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        fields = read_request("GenerateRequest", exchange.body)
        name = str(fields.get("model", ""))
        spec = self._find(name, f"model '{name}' not found")
        prompt = str(fields.get("prompt", ""))
        raw = bool(fields.get("raw"))
        top_logprob_count = _top_logprob_count(fields)
        answer = Answer(name, False, fields.get("stream", True) is True, 0, [], "", top_logprob_count=top_logprob_count)
        if not prompt and fields.get("keep_alive") == 0:
            self._unload(exchange, spec, answer)
            return
        if raw and any(fields.get(field) for field in ("template", "system", "context")):
            raise _Refused(400, "raw mode does not support template, system, or context")
        self._check_capabilities(spec, name, "generate", fields)
        call = self._call(exchange, spec, fields)
        with self._scheduler.using(call) as resident:
            if not prompt:
                _send(exchange, answer.without_tokens("load"))
                return
            system = str(fields.get("system", ""))
            full = f"{system}\n\n{prompt}" if system else prompt
            if not raw:
                context = fields.get("context")
                answer.context = list(context) if isinstance(context, list) else []
                said = [{"role": "system", "content": system}] if system else []
                prompt = _rendered(spec, [*said, {"role": "user", "content": prompt}], fields)
            if fields.get("_debug_render_only"):
                _send(exchange, answer.rendered(prompt))
                return
            try:
                self._fill(answer, spec, prompt, token_count(full), fields, call.options.num_ctx)
            except RunnerFailed as failure:
                send_failure(exchange, failure, stream=answer.stream)
                return
            self._speaker.speak(exchange, call, resident, answer, started_ns)

    def _chat(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        fields = read_request("ChatRequest", exchange.body)
        name = str(fields.get("model", ""))
        if not name:
            raise _Refused(400, "model is required")
        spec = self._find(name, f"model '{name}' not found")
        listed = fields.get("messages", [])
        messages: list[Mapping[str, object]] = list(listed) if isinstance(listed, list) else []
        top_logprob_count = _top_logprob_count(fields)
        answer = Answer(name, True, fields.get("stream", True) is True, 0, [], "", top_logprob_count=top_logprob_count)
        if not messages and fields.get("keep_alive") == 0:
            self._unload(exchange, spec, answer)
            return
        self._check_capabilities(spec, name, "chat", fields)
        call = self._call(exchange, spec, fields)
        with self._scheduler.using(call) as resident:
            if not messages:
                _send(exchange, answer.without_tokens("load"))
                return
            prompt = _rendered(spec, messages, fields)
            if fields.get("_debug_render_only"):
                _send(exchange, answer.rendered(prompt))
                return
            try:
                self._fill(answer, spec, prompt, token_count(as_text(messages)), fields, call.options.num_ctx)
            except RunnerFailed as failure:
                send_failure(exchange, failure, stream=answer.stream)
                return
            self._speaker.speak(exchange, call, resident, answer, started_ns)

    def _embed(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        fields = read_request("EmbedRequest", exchange.body)
        texts = _embed_input(fields.get("input"))
        name = str(fields.get("model", ""))
        spec = self._find_for_embedding(name)
        call = self._call(exchange, spec, fields)
        with self._scheduler.using(call) as resident:
            if not texts:
                _send(exchange, {"model": name, "embeddings": []})
                return
            load_ns = time.monotonic_ns() - started_ns
            truncates = fields.get("truncate", True) is True
            counts = [token_count(text) for text in texts]
            if not truncates and max(counts) > call.options.num_ctx:
                raise _Refused(400, TOO_LONG)
            total = sum(min(count, call.options.num_ctx) for count in counts)
            fault = self._faults.take(WHILE_EMBEDDING, spec.name)
            if fault is not None and fault.kind == "context_exceeded":
                raise _Refused(400, STILL_TOO_LONG if truncates else TOO_LONG)
            try:
                self._speaker.embed(exchange, call, resident, total, fault)
            except RunnerFailed as failure:
                raise _Refused(failure.status, str(failure)) from None
            dimensions = fields.get("dimensions")
            wanted = dimensions if isinstance(dimensions, int) else None
            _send(
                exchange,
                {
                    "model": name,
                    "embeddings": [expected_embedding(spec, text, wanted) for text in texts],
                    "total_duration": time.monotonic_ns() - started_ns,
                    "load_duration": load_ns,
                    "prompt_eval_count": total,
                },
            )

    def _embeddings(self, exchange: Exchange) -> None:
        fields = read_request("EmbeddingRequest", exchange.body)
        name = str(fields.get("model", ""))
        if not name:
            raise _Refused(400, "model is required")
        spec = self._find_for_embedding(name)
        prompt = str(fields.get("prompt", ""))
        call = self._call(exchange, spec, fields)
        with self._scheduler.using(call) as resident:
            if prompt:
                fault = self._faults.take(WHILE_EMBEDDING, spec.name)
                total = min(token_count(prompt), call.options.num_ctx)
                try:
                    self._speaker.embed(exchange, call, resident, total, fault)
                except RunnerFailed as failure:
                    raise _Refused(failure.status, str(failure)) from None
            _send(exchange, {"embedding": raw_embedding(spec, prompt) if prompt else []})

    def _unload(self, exchange: Exchange, spec: ModelSpec, answer: Answer) -> None:
        self._scheduler.expire(spec.tagged_name)
        _send(exchange, answer.without_tokens("unload"))

    def _find(self, name: str, not_found: str) -> ModelSpec:
        if name and not is_valid_name(name):
            raise _Refused(400, "invalid model name")
        spec = self._models.get(tagged(name))
        if spec is None:
            raise _Refused(404, not_found)
        return spec

    def _find_for_embedding(self, name: str) -> ModelSpec:
        return self._find(name, f'model "{name}" not found, try pulling it first' if name else "model '' not found")

    @staticmethod
    def _check_capabilities(spec: ModelSpec, name: str, endpoint: str, fields: Fields) -> None:
        full_name = f"registry.ollama.ai/library/{spec.tagged_name}"
        if fields.get("think") and "thinking" not in spec.capabilities:
            raise _Refused(400, f'"{name}" does not support thinking')
        if "completion" not in spec.capabilities:
            raise _Refused(400, f'"{name}" does not support {endpoint}')
        for field, capability in (("suffix", "insert"), ("tools", "tools")):
            if fields.get(field) and capability not in spec.capabilities:
                raise _Refused(400, f"{full_name} does not support {capability}")

    def _call(self, exchange: Exchange, spec: ModelSpec, fields: Fields) -> Call:
        given = fields.get("options")
        options = given if isinstance(given, dict) else {}
        check_options(options)
        if self._faults.take(("busy",), spec.name):
            raise ServerBusy(BUSY)
        keep_alive = fields.get("keep_alive")
        exchange.request = f"{exchange.path}#{next(self._numbers)}"
        return Call(
            exchange=exchange,
            request=exchange.request,
            spec=spec,
            options=runner_options(spec, options, shift=fields.get("shift", True) is True),
            keep_alive_s=keep_alive if isinstance(keep_alive, float) else None,
        )

    @staticmethod
    def _fill(answer: Answer, spec: ModelSpec, prompt: str, count: int, fields: Fields, num_ctx: int) -> None:
        """Plan the answer to a prompt as it reaches the model, of `count` tokens."""
        wanted_format = fields.get("format")
        if not (wanted_format in (None, "", "json") or isinstance(wanted_format, dict)):
            quoted = json.dumps(json.dumps(wanted_format, separators=(",", ":")))
            raise RunnerFailed(f'invalid format: {quoted}; expected "json" or a valid JSON Schema object')
        if count > num_ctx and ((answer.chat and spec.native_chat) or fields.get("truncate") is False):
            raise context_exceeded(count, num_ctx)
        answer.prompt_token_count = min(count, num_ctx)
        options = fields.get("options")
        num_predict = integer_option(options, "num_predict") if isinstance(options, dict) else None
        answer.tokens, answer.done_reason = planned_raw_tokens(spec, prompt, num_predict)
        if fields.get("think"):
            answer.thinking = answer_tokens(spec, f"thinking about {prompt}", _THINKING_TOKEN_COUNT)


def _rendered(spec: ModelSpec, messages: Sequence[Mapping[str, object]], fields: Fields) -> str:
    # Where `think` is unset, a model that can think does.
    thinks = bool(fields["think"]) if "think" in fields else "thinking" in spec.capabilities
    return rendered(spec.renderer, messages, thinks=thinks)


def _top_logprob_count(fields: Fields) -> int | None:
    count = fields.get("top_logprobs", 0)
    if not isinstance(count, int) or not 0 <= count <= 20:
        raise _Refused(400, "top_logprobs must be between 0 and 20")
    return count if fields.get("logprobs") else None


def _embed_input(given: object) -> list[str]:
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise _Refused(400, "invalid input type")
    return list(given)


def _send(exchange: Exchange, payload: Mapping[str, object]) -> None:
    exchange.send(200, JSON_UTF8, encode(payload))


def _send_error(exchange: Exchange, status: int, message: str) -> None:
    exchange.send(status, JSON_UTF8, encode({"error": message}))
