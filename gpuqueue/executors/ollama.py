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
from gpuqueue.executors.ollama_continuing import CHAT_PATH, GENERATE_PATH, Continuation, continuation, is_continued, path_of

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
        self._thinking: set[str] = set()  # models that think unless they are told not to
        self._renders = True  # whether the server tells its prompts

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
        if placement is not None and keep_warm_s == "auto":
            return placement.keep_warm_s or self._keep_alive_s
        return max(self._keep_alive_s, 0.0 if keep_warm_s == "auto" else keep_warm_s)

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
    model that is not in the card's memory), and "continued_tokens" (the part of `output_tokens` from earlier attempts whose
    output this one continued; it then was part of the prompt, and there is no "context"). `first_token_s` is this attempt's
    wait, for thinking too; the other durations are Ollama's, and only of this attempt. A figure that Ollama does not report is 0.
    """

    def continues(self, arguments: Mapping[str, Any], model: str) -> bool:
        name = full_name(model or str(arguments.get("model", "")))
        settings = self._models.get(name)
        if (settings is not None and settings.resume == "restart") or not is_continued(arguments):
            return False
        # What is not known yet is learned with the first preemption.
        return bool(arguments.get("raw") or self._renders) and (arguments.get("think") is not None or name not in self._thinking)

    def run(self, context: AttemptContext) -> dict[str, Any]:
        began_s = time.monotonic()
        body = self.body(context.lease.arguments, context.lease.placement, context.lease.model)
        rest = self.continuation(body, context)
        # The server loads the model before it tells its prompts, so the answer that follows does not report that.
        asked_s = 0.0 if context.partial is None else time.monotonic() - began_s
        if rest is not None:
            with suppress(CallerFault):  # refused before the first token, for example because it is too long
                return self._answered(rest.path, rest.body, context, _Answer(body, began_s, asked_s, context.partial))
        return self._answered(self.path, body, context, _Answer(body, began_s, asked_s))

    def continuation(self, body: Mapping[str, Any], context: AttemptContext) -> Continuation | None:
        """Return how an attempt continues an earlier one's output; None if it starts again."""
        before, model = context.partial, full_name(str(body["model"]))
        if before is None or full_name(before.model or str(context.lease.arguments["model"])) != model:
            return None
        settings = self._models.get(model)
        if settings is not None and settings.resume == "restart":
            return None
        try:
            return continuation(
                body,
                before,
                thinks=lambda asked: "think" not in asked and self._can_think(model, context),
                rendered=lambda asked: self._rendered(asked, context),
            )
        except ExecutionError:  # not this job's failure: whatever is wrong, the request itself meets it too
            return None

    def _can_think(self, model: str, context: AttemptContext) -> bool:
        if not self._client.can_think(model, context):
            self._thinking.discard(model)
            return False
        self._thinking.add(model)
        return True

    def _rendered(self, body: Mapping[str, Any], context: AttemptContext) -> str | None:
        found = self._client.rendered(path_of(body), body, context)
        self._renders = found is not None
        return found

    def _answered(self, path: str, body: Mapping[str, Any] | None, context: AttemptContext, answer: _Answer) -> dict[str, Any]:
        if body is None:
            context.continue_output()
            return answer.result() | self._spilled(answer.model)
        with closing(self._client.stream(path, body, context)) as lines:
            for number, line in enumerate(lines):
                if number == 0 and answer.before is not None:
                    context.continue_output()
                if not answer.count:
                    self._refuse_spill(answer.model)
                text = answer.take(line)
                if text:
                    context.emit(text)
                # After its text, which an interruption may refuse: an attempt that continues relies on both.
                context.tokens(answer.count)
        return answer.result() | self._spilled(answer.model)


class _Answer:
    """The answer so far, and the figures of its last line."""

    def __init__(self, body: Mapping[str, Any], began_s: float, asked_s: float, before: PartialOutput | None = None) -> None:
        self.model = str(body["model"])
        self.before = before
        self.count = 0  # tokens of this attempt
        self._texts = [] if before is None else [before.text]
        self._thoughts: list[str] = []
        self._more: dict[str, Any] = {} if before is None else {"continued_tokens": before.output_tokens}
        self._last: Mapping[str, Any] = {}
        self._began_s = began_s
        self._asked_s = asked_s
        self._first_token_s = 0.0

    def take(self, line: Mapping[str, Any]) -> str:
        """Add one line of a chat or a generation; returns its text."""
        self._last = line
        said = line.get("message") or line
        text, thought = str(said.get("content") or line.get("response") or ""), str(said.get("thinking") or "")
        tool_calls = said.get("tool_calls") or ()
        if text or thought or tool_calls:
            self.count += 1
            self._first_token_s = self._first_token_s or time.monotonic() - self._began_s
        self._thoughts.append(thought)
        self._texts.append(text)
        for key, found in (("tool_calls", tool_calls), ("logprobs", line.get("logprobs"))):
            if found:
                self._more.setdefault(key, []).extend(found)
        return text

    def result(self) -> dict[str, Any]:
        """Return the verb's result."""
        last = self._last
        if thinking := "".join(self._thoughts):
            self._more["thinking"] = thinking
        if last.get("context"):
            self._more["context"] = last["context"]
        return {
            "text": "".join(self._texts),
            "model": str(last.get("model") or self.model),
            "done_reason": str(last.get("done_reason") or ("" if last else "length")),
            "prompt_tokens": int(last.get("prompt_eval_count") or 0),
            "output_tokens": int(last.get("eval_count") or 0) + self._more.get("continued_tokens", 0),
            "load_s": _seconds(last, "load_duration") + self._asked_s,
            "prompt_s": _seconds(last, "prompt_eval_duration"),
            "generate_s": _seconds(last, "eval_duration"),
            "total_s": _seconds(last, "total_duration"),
            "first_token_s": self._first_token_s,
            **self._more,
        }


class Generate(_Streaming):
    """Continue a prompt."""

    verb = GENERATE
    path = GENERATE_PATH


class Chat(_Streaming):
    """Answer the last message."""

    verb = CHAT
    path = CHAT_PATH


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
