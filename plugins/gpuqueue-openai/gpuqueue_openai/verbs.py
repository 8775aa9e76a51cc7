"""Runs the verbs `openai.chat`, `openai.complete` and `openai.embed`: builds requests from arguments and results from answers.

Loads and unloads no models: the server manages its own memory on the card.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from gpuqueue.plugins import AttemptContext, CallerFault
from gpuqueue_openai.answer import Answer
from gpuqueue_openai.server import Server

NOT_A_JOBS = {
    "stream": "every answer is streamed; read it with job.stream(), or whole with job.result()",
    "stream_options": "every request sets it to count the tokens",
}


class OpenAIVerb(ABC):
    """One verb of one server, on a worker's event loop; its arguments are passed on unchanged."""

    preemptible = True
    name: ClassVar[str]
    path: ClassVar[str]
    required: ClassVar[str]

    def __init__(self, server: Server) -> None:
        self._server = server

    @abstractmethod
    async def arun(self, context: AttemptContext) -> dict[str, Any]:
        """Run one attempt.

        Returns: the verb's result. Raises: ExecutionError of the failure's class.
        """

    def body(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Build the request body from a job's arguments, without those that are None. Raises: CallerFault."""
        given = {key: value for key, value in arguments.items() if value is not None}
        if self.required not in given:
            raise CallerFault(f"{self.name} needs the argument {self.required!r}")
        return given


class _Streaming(OpenAIVerb):
    """Common behaviour of chat and complete.

    Result: {"text", "model", "done_reason", "prompt_tokens", "output_tokens", "total_s", "first_token_s"}, and, if the answer
    has them, "thinking", "tool_calls" (in OpenAI's form, to be sent back unchanged) and "logprobs". `first_token_s` is how long
    this attempt waited for its first token, including thinking. A figure that the server does not give is 0, except that
    `output_tokens` is then the number of pieces.
    """

    def body(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = super().body(arguments)
        for key in NOT_A_JOBS.keys() & given.keys():
            raise CallerFault(f"{self.name}: a job cannot set {key}, because {NOT_A_JOBS[key]}")
        count = given.get("n")
        if isinstance(count, int | float) and count > 1:
            raise CallerFault(f"{self.name}: n must be 1, not {count}, because a job has one answer; enqueue {count} jobs")
        return {**given, "stream": True, "stream_options": {"include_usage": True}}

    async def arun(self, context: AttemptContext) -> dict[str, Any]:
        body = self.body(context.lease.arguments)
        answer = Answer(str(body.get("model", "")))

        def take(event: Mapping[str, Any]) -> bool:
            text = answer.take(event)
            context.tokens(answer.output_tokens)
            if text:
                context.emit(text)
            return answer.count > 0

        await self._server.stream(self.path, body, take)
        return answer.result()


class Chat(_Streaming):
    """Answer the last message."""

    name = "openai.chat"
    path = "/chat/completions"
    required = "messages"


class Complete(_Streaming):
    """Continue a prompt."""

    name = "openai.complete"
    path = "/completions"
    required = "prompt"


class Embed(OpenAIVerb):
    """Turn texts into vectors.

    Result: {"embeddings", "model", "prompt_tokens", "total_s"}.
    """

    name = "openai.embed"
    path = "/embeddings"
    required = "input"

    async def arun(self, context: AttemptContext) -> dict[str, Any]:
        body = self.body(context.lease.arguments)
        began_s = time.monotonic()
        found = await self._server.ask(self.path, body)
        vectors = found.get("data")
        if not isinstance(vectors, list) or not all(isinstance(item, dict) and "embedding" in item for item in vectors):
            raise self._server.failures.crashed(f"answered {self.name} without embeddings")
        vectors = sorted(vectors, key=lambda item: int(item.get("index") or 0))
        return {
            "embeddings": [item["embedding"] for item in vectors],
            "model": str(found.get("model") or body.get("model", "")),
            "prompt_tokens": int((found.get("usage") or {}).get("prompt_tokens") or 0),
            "total_s": time.monotonic() - began_s,
        }
