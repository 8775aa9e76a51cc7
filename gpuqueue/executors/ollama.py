"""Runs the verbs `ollama.generate`, `ollama.chat` and `ollama.embed`: a job's arguments in, its result out.

Never unloads a model.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, ClassVar

from gpuqueue.contract.executor import AttemptContext, Executor
from gpuqueue.contract.hookspecs import RegisterExecutorsDetails, hookimpl
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.errors import CallerFault, ExecutionError, Spilled, did_you_mean
from gpuqueue.domain.job import PartialOutput
from gpuqueue.domain.models import CHAT, EMBED, GENERATE, Verb, full_name
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings
from gpuqueue.domain.units import format_size
from gpuqueue.executors.ollama_client import OllamaClient

SPILL_QUERY_S = 10.0  # when the answer decides whether the job continues
KEEP_ALIVE_S = 30.0  # Ollama itself unloads after this if the worker dies before its clean-up

# A difference in one of these makes Ollama reload the model, with another size.
MEMORY_OPTIONS = frozenset({"num_ctx", "num_gpu", "num_batch", "num_thread", "main_gpu", "use_mmap", "shift"})


class OllamaExecutor(ABC):
    """One verb of one Ollama; the configured memory options of a model are the same for all its jobs."""

    preemptible = True
    verb: ClassVar[Verb]
    path: ClassVar[str]

    def __init__(
        self,
        settings: BackendSettings,
        models: Mapping[str, ModelSettings],
        devices: Sequence[DeviceSettings] = (),
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._client = OllamaClient(settings)
        self._models = {full_name(model.name): model for model in models.values()}
        self._keep_warm_s = {device.name: device.keep_warm_s for device in devices}
        self._keep_alive_s = keep_alive_s

    def continues(self, arguments: Mapping[str, Any], model: str) -> bool:
        """Whether the next attempt would continue the output of one that was preempted."""
        return False

    @abstractmethod
    def run(self, context: AttemptContext) -> dict[str, Any]:
        """Run one attempt.

        Returns: the verb's result. Raises: AttemptInterrupted, or an ExecutionError that classifies the failure.
        """

    def body(self, arguments: Mapping[str, Any], placement: Placement | None, model: str = "") -> dict[str, Any]:
        """Build the request from a job's arguments and its model's configured options.

        `model` is the one chosen for the job, which may be a fallback; the job's memory options then do not apply.
        Raises: CallerFault for an unknown argument, or a different value of a configured memory option.
        """
        verb = self.verb
        given = {key: value for key, value in arguments.items() if value is not None}
        for key in given:
            if key == "keep_alive":
                raise CallerFault(f"{verb.name}: a job cannot set keep_alive; set keep_warm for the device")
            if key not in verb.allowed:
                near = did_you_mean(key, verb.allowed)
                raise CallerFault(f"{verb.name}: unknown argument {key!r}{near}. Arguments: {', '.join(sorted(verb.allowed))}")
        for key in sorted(verb.required - given.keys()):
            raise CallerFault(f"{verb.name}: missing argument {key!r}")
        if model and full_name(model) != full_name(str(given["model"])):
            asked = given.get("options")
            if isinstance(asked, Mapping):
                given["options"] = {key: value for key, value in asked.items() if key not in MEMORY_OPTIONS}
            given["model"] = model
        options = self._options(str(given["model"]), given)
        # Ollama takes this one as a field of the request, not as an option.
        if "shift" in options:
            given["shift"] = options.pop("shift")
        return {**given, "options": options, "keep_alive": self._keep_alive(placement)}

    def _options(self, model: str, given: Mapping[str, Any]) -> dict[str, Any]:
        asked = given.get("options", {})
        if not isinstance(asked, Mapping):
            raise CallerFault(f"{self.verb.name}: options must be a mapping, not {asked!r}")
        asked = dict(asked)
        if "shift" in given:
            asked["shift"] = given["shift"]
        settings = self._models.get(full_name(model))
        configured = {} if settings is None else settings.options
        for key in MEMORY_OPTIONS & asked.keys() & configured.keys():
            if asked[key] != configured[key]:
                raise CallerFault(
                    f"{self.verb.name}: {key} = {asked[key]!r} would reload {model!r}, which is configured with "
                    f"{key} = {configured[key]!r}. Remove it from the job's options, or change it in [models.{model!r}]"
                )
        return {**configured, **asked}

    def _keep_alive(self, placement: Placement | None) -> float:
        # Sent with this request: a separate one afterwards would have to repeat these options, or reload the model.
        keep_warm_s = 0.0 if placement is None else self._keep_warm_s.get(placement.device, 0.0)
        return max(self._keep_alive_s, keep_warm_s)

    def _refuse_spill(self, model: str) -> None:
        """Stop early if the model did not fully fit on the device and its settings do not accept that. Raises: Spilled."""
        settings = self._models.get(full_name(model))
        if settings is None or settings.on_spill == "accept":
            return
        spilled_bytes = self._spilled(model, timeout_s=SPILL_QUERY_S).get("spilled_bytes", 0)
        if spilled_bytes:
            raise Spilled(
                f"{format_size(spilled_bytes)} of {model} did not fit on the card and would run on the CPU, which is much slower "
                f"(on_spill = {settings.on_spill!r}). Check `gpuqueue gpu`"
            )

    def _spilled(self, model: str, timeout_s: float = 1.0) -> dict[str, int]:
        # Extra information: failing to get it must not lose the answer.
        with suppress(ExecutionError):
            for resident in self._client.residents(timeout_s=timeout_s):
                if full_name(resident.model) == full_name(model):
                    return {"spilled_bytes": max(0, resident.size_bytes - resident.vram_bytes)}
        return {}


class _Streaming(OllamaExecutor):
    """The common part of generate and chat.

    Result: {"text", "model", "done_reason", "prompt_tokens", "output_tokens", "load_s", "prompt_s", "generate_s", "total_s",
    "first_token_s"}, and if available "thinking", "tool_calls", "logprobs", "context", "spilled_bytes" (the part of the
    model that is not in the card's memory), and "continued_tokens" (the part of `output_tokens` from an earlier, preempted
    attempt). `first_token_s` is this attempt's wait, for thinking too; the other durations are Ollama's. A figure that Ollama
    does not report is 0.
    """

    def continues(self, arguments: Mapping[str, Any], model: str) -> bool:
        is_its_own = not model or full_name(model) == full_name(str(arguments.get("model", "")))
        return is_its_own and self._may_continue(arguments)

    def run(self, context: AttemptContext) -> dict[str, Any]:
        body, before = self.request(context)
        answer = _Answer()
        if before is not None:
            answer.begin_with(before)
        if answer.tokens_left(body) != 0:
            with closing(self._client.stream(self.path, body, context)) as lines:
                for line in lines:
                    if not answer.count:
                        self._refuse_spill(str(body["model"]))
                    text = answer.take(line, *self.pieces(line))
                    context.tokens(answer.count)
                    if text:
                        context.emit(text)
        return {**answer.result(str(body["model"])), **self._spilled(str(body["model"]))}

    def request(self, context: AttemptContext) -> tuple[dict[str, Any], PartialOutput | None]:
        """Return the request of an attempt, and the earlier output that it continues, if it does."""
        arguments = context.lease.arguments
        body = self.body(arguments, context.lease.placement, context.lease.model)
        is_its_own = full_name(str(body["model"])) == full_name(str(arguments["model"]))
        before = context.partial if is_its_own and self._may_continue(body) else None
        rest = None if before is None else self.continued(body, before)
        if rest is None:
            return body, None
        context.continue_output()
        return rest, before

    @abstractmethod
    def pieces(self, line: Mapping[str, Any]) -> tuple[str, str, Sequence[Any]]:
        """Return a line's text, thinking and tool calls."""

    @abstractmethod
    def continued(self, body: Mapping[str, Any], before: PartialOutput) -> dict[str, Any] | None:
        """Build the request that continues an earlier one's output; None when that is not possible."""

    def _may_continue(self, body: Mapping[str, Any]) -> bool:
        # Settings for the answer's shape start again with each request, and would apply to its second half alone.
        settings = self._models.get(full_name(str(body["model"])))
        return settings is not None and settings.resume == "continue" and not any(body.get(key) for key in _SHAPED)


_SHAPED = ("format", "tools", "think", "logprobs", "suffix", "context")


def _with_fewer_tokens(body: Mapping[str, Any], before: PartialOutput) -> dict[str, Any]:
    limit = body["options"].get("num_predict")
    if not isinstance(limit, int) or limit <= 0:
        return dict(body)
    return {**body, "options": {**body["options"], "num_predict": max(0, limit - before.output_tokens)}}


class _Answer:
    """The answer so far, and the figures of its last line."""

    def __init__(self) -> None:
        self.count = 0  # tokens of this attempt
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._more: dict[str, Any] = {}
        self._last: Mapping[str, Any] = {}
        self._began_s = time.monotonic()
        self._first_token_s = 0.0
        self._before = 0

    def begin_with(self, before: PartialOutput) -> None:
        """Continue from an earlier attempt's output."""
        self._texts.append(before.text)
        self._before = self._more["continued_tokens"] = before.output_tokens

    def tokens_left(self, body: Mapping[str, Any]) -> int | None:
        """Return how many tokens may still be generated, None without a limit."""
        limit = body["options"].get("num_predict")
        return limit if self._before and isinstance(limit, int) and limit >= 0 else None

    def take(self, line: Mapping[str, Any], text: str, thought: str, tool_calls: Sequence[Any]) -> str:
        """Add one line's pieces; returns its text."""
        self._last = line
        if text or thought or tool_calls:
            self.count += 1
            self._first_token_s = self._first_token_s or time.monotonic() - self._began_s
        self._thoughts.append(thought)
        self._texts.append(text)
        for key, found in (("tool_calls", tool_calls), ("logprobs", line.get("logprobs"))):
            if found:
                self._more.setdefault(key, []).extend(found)
        return text

    def result(self, model: str) -> dict[str, Any]:
        """Return the verb's result."""
        last = self._last
        if thinking := "".join(self._thoughts):
            self._more["thinking"] = thinking
        if last.get("context"):
            self._more["context"] = last["context"]
        return {
            "text": "".join(self._texts),
            "model": str(last.get("model") or model),
            "done_reason": str(last.get("done_reason") or ("" if last else "length")),
            "prompt_tokens": int(last.get("prompt_eval_count") or 0),
            "output_tokens": int(last.get("eval_count") or 0) + self._before,
            "load_s": _seconds(last, "load_duration"),
            "prompt_s": _seconds(last, "prompt_eval_duration"),
            "generate_s": _seconds(last, "eval_duration"),
            "total_s": _seconds(last, "total_duration"),
            "first_token_s": self._first_token_s,
            **self._more,
        }


class Generate(_Streaming):
    """Continue a prompt."""

    verb = GENERATE
    path = "/api/generate"

    def pieces(self, line: Mapping[str, Any]) -> tuple[str, str, Sequence[Any]]:
        return str(line.get("response") or ""), str(line.get("thinking") or ""), line.get("tool_calls") or ()

    def continued(self, body: Mapping[str, Any], before: PartialOutput) -> dict[str, Any] | None:
        if not body.get("raw"):  # a template would put the partial answer into the person's turn
            return None
        return {**_with_fewer_tokens(body, before), "prompt": f"{body['prompt']}{before.text}"}


class Chat(_Streaming):
    """Answer the last message."""

    verb = CHAT
    path = "/api/chat"

    def pieces(self, line: Mapping[str, Any]) -> tuple[str, str, Sequence[Any]]:
        message = line.get("message") or {}
        return str(message.get("content") or ""), str(message.get("thinking") or ""), message.get("tool_calls") or ()

    def continued(self, body: Mapping[str, Any], before: PartialOutput) -> dict[str, Any] | None:
        partial = {"role": "assistant", "content": before.text}
        return {**_with_fewer_tokens(body, before), "messages": [*body["messages"], partial]}


class Embed(OllamaExecutor):
    """Embed texts as vectors.

    Result: {"embeddings", "model", "prompt_tokens", "load_s", "total_s"}, and "spilled_bytes" where known.
    """

    verb = EMBED
    path = "/api/embed"

    def run(self, context: AttemptContext) -> dict[str, Any]:
        body = self.body(context.lease.arguments, context.lease.placement, context.lease.model)
        found = self._client.answer(self.path, body, context)
        return {
            "embeddings": found.get("embeddings") or [],
            "model": str(found.get("model") or body["model"]),
            "prompt_tokens": int(found.get("prompt_eval_count") or 0),
            "load_s": _seconds(found, "load_duration"),
            "total_s": _seconds(found, "total_duration"),
            **self._spilled(str(body["model"])),
        }


class OllamaVerbs:
    """Registers the verbs of each configured backend under its name, and those of the first one also as `ollama.*`."""

    @hookimpl
    def register_executors(self, details: RegisterExecutorsDetails) -> Mapping[str, Executor]:
        verbs: dict[str, Executor] = {}
        for backend in details.backends:
            for kind in (Generate, Chat, Embed):
                executor = kind(backend, details.models, details.devices)
                verbs[kind.verb.name.replace("ollama", backend.name, 1)] = executor
                verbs.setdefault(kind.verb.name, executor)
        return verbs


def _seconds(line: Mapping[str, Any], name: str) -> float:
    return int(line.get(name) or 0) / 1e9
