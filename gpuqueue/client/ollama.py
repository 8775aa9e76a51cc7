"""Enqueues requests to Ollama: the client side of its verbs, with their arguments; sends no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict, Unpack

from gpuqueue.client.async_twins import twin
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.options import EnqueueOptions, JobOptions, merged, read_options
from gpuqueue.client.tasks import Signature, Submits, Task
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.models import CHAT, EMBED, GENERATE, VERBS, Verb


class _Generating(TypedDict, total=False):
    format: str | Mapping[str, Any] | None
    options: Mapping[str, Any] | None
    think: bool | str | None
    truncate: bool | None
    shift: bool | None
    logprobs: bool | None
    top_logprobs: int | None


class GenerateRequest(_Generating, total=False):
    """The fields of Ollama's /api/generate that a job may set; None is left out."""

    suffix: str | None
    system: str | None
    template: str | None
    context: Sequence[int] | None
    raw: bool | None
    images: Sequence[str] | None


class ChatRequest(_Generating, total=False):
    """The fields of Ollama's /api/chat that a job may set; None is left out."""

    tools: Sequence[Mapping[str, Any]] | None


class EmbedRequest(TypedDict, total=False):
    """The fields of Ollama's /api/embed that a job may set; None is left out."""

    dimensions: int | None
    truncate: bool | None
    options: Mapping[str, Any] | None


class Registers(Submits, Protocol):
    """The methods of a queue object that the Ollama verbs use: `submit` and `add_task`."""

    def add_task(self, task: Task[..., Any], /) -> Task[..., Any]: ...


class OllamaTasks:
    """`gq.ollama`: enqueue generate, chat and embed requests.

    In addition to the request's own fields, each takes `queue` and, in `job`, the options of `Task.using`. The result is a
    dict with the text (or embeddings) and every token and timing figure; see the executor.
    """

    def __init__(self, gq: Registers) -> None:
        self._gq = gq
        self._tasks = {name: self._register(verb) for name, verb in VERBS.items()}

    def generate(
        self, /, model: str, *, prompt: str, queue: str, job: EnqueueOptions | None = None, **request: Unpack[GenerateRequest]
    ) -> JobHandle:
        """Enqueue a completion of `prompt`. Optional: system, format, options, images, raw, think, suffix, context, template."""
        return self._submit(GENERATE, queue, job, {"model": model, "prompt": prompt, **request})

    def chat(
        self,
        /,
        model: str,
        *,
        messages: Sequence[Mapping[str, Any]],
        queue: str,
        job: EnqueueOptions | None = None,
        **request: Unpack[ChatRequest],
    ) -> JobHandle:
        """Enqueue a chat; `messages` are {role, content} dicts. Optional: tools, format, options, think."""
        return self._submit(CHAT, queue, job, {"model": model, "messages": list(messages), **request})

    def embed(
        self,
        /,
        model: str,
        *,
        input: str | Sequence[str],
        queue: str,
        job: EnqueueOptions | None = None,
        **request: Unpack[EmbedRequest],
    ) -> JobHandle:
        """Enqueue embeddings of one text or several. Optional: dimensions, truncate, options."""
        return self._submit(EMBED, queue, job, {"model": model, "input": input, **request})

    agenerate = twin(generate)
    achat = twin(chat)
    aembed = twin(embed)

    def _register(self, verb: Verb) -> Task[..., Any]:
        signature = Signature(verb.required, verb.allowed)
        return self._gq.add_task(Task[..., Any](self._gq, verb.name, None, JobOptions(), signature=signature))

    def _submit(self, verb: Verb, queue: str, job: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> JobHandle:
        task = self._tasks[verb.name]
        if job is not None and "queue" in job:
            raise UsageError("queue was passed twice: as an argument and in job")
        return self._gq.submit(task, arguments, merged(read_options({"queue": queue, **(job or {})}), task.defaults))
