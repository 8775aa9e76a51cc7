"""Owns the client's side of the Ollama verbs: their names, arguments and enqueueing; speaks no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpuqueue.tasks import JobOptions, Signature, Task, job_options_of, merged

if TYPE_CHECKING:
    from gpuqueue.handle import JobHandle
    from gpuqueue.queue import GPUQueue

_COMMON = {"model", "options", "truncate"}
VERBS: Mapping[str, Signature] = {
    "ollama.generate": Signature(
        frozenset({"model", "prompt"}),
        frozenset(_COMMON | {"prompt", "suffix", "system", "template", "context", "raw", "format", "images", "think"}),
    ),
    "ollama.chat": Signature(frozenset({"model", "messages"}), frozenset(_COMMON | {"messages", "tools", "format", "think"})),
    "ollama.embed": Signature(frozenset({"model", "input"}), frozenset(_COMMON | {"input", "dimensions"})),
}


class OllamaTasks:
    """`gq.ollama`: enqueue generate, chat and embed requests.

    Beside the request's own fields each takes `queue` and, in `job`, the options of `Task.using`. The result is a dict with
    the text (or embeddings) and every token and timing figure; see the executor.
    """

    def __init__(self, gq: GPUQueue) -> None:
        self._gq = gq
        self._tasks: dict[str, Task[..., Any]] = {
            name: gq.add_task(Task[..., Any](gq, name, None, JobOptions(), signature=signature))
            for name, signature in VERBS.items()
        }

    def generate(self, model: str, *, prompt: str, queue: str, job: Mapping[str, Any] | None = None, **request: Any) -> JobHandle:
        """Enqueue a completion: `prompt` and, at will, system, format, options, images, raw, think, suffix, context, template."""
        return self._submit("ollama.generate", queue, job, {"model": model, "prompt": prompt, **request})

    def chat(
        self,
        model: str,
        *,
        messages: Sequence[Mapping[str, Any]],
        queue: str,
        job: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> JobHandle:
        """Enqueue a chat: `messages` are {role, content} dicts; at will tools, format, options, think."""
        return self._submit("ollama.chat", queue, job, {"model": model, "messages": list(messages), **request})

    def embed(
        self, model: str, *, input: str | Sequence[str], queue: str, job: Mapping[str, Any] | None = None, **request: Any
    ) -> JobHandle:
        """Enqueue embeddings of one text or several; at will dimensions, truncate, options."""
        return self._submit("ollama.embed", queue, job, {"model": model, "input": input, **request})

    def _submit(self, name: str, queue: str, job: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> JobHandle:
        task = self._tasks[name]
        return self._gq.submit(task, arguments, merged(job_options_of(job or {}, queue=queue), task.defaults))
