"""Builds the request that continues the text of an interrupted answer, or none where the model would not see the same prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpuqueue.domain.job import PartialOutput

GENERATE_PATH, CHAT_PATH = "/api/generate", "/api/chat"
BYTES_A_TOKEN = 2  # of a prompt; text of all languages has more, so its tokens are rather overestimated

# These start again with each request, belong to the prompt in a form that cannot be had back, or are thoughts.
_NEVER = ("format", "tools", "logprobs", "suffix", "context", "images", "think")
_OF_A_PROMPT = ("messages", "prompt", "system", "template", "raw")

Body = Mapping[str, Any]


class Continuation(NamedTuple):
    """The request for the rest of an answer; `body` is None if nothing is left to write."""

    path: str
    body: Body | None


def path_of(body: Body) -> str:
    """Return where a request is sent."""
    return CHAT_PATH if "messages" in body else GENERATE_PATH


def is_continued(body: Body) -> bool:
    """Whether an answer to such a request can be continued at all."""
    return not any(body.get(key) for key in _NEVER) and not _has_images(body)


def continuation(
    body: Body,
    before: PartialOutput,
    *,
    thinks: Callable[[Body], bool],
    rendered: Callable[[Body], str | None],
) -> Continuation | None:
    """Return the request that continues `before`, an answer to the request `body`; None to start again.

    The model is to see its own prompt and its own text, byte for byte. So the server is asked for the prompt of `body`. If a
    chat that ends with the text becomes just that, it is sent, as it keeps the model's parser; else prompt and text are sent
    raw. But where the server shows that something stands between the two, a parser had taken that away, and it is not sent.

    Thoughts are not in the text, and the server trims them. So it starts again if `thinks` says that the model thinks first.
    `rendered` returns the prompt of a request, None if the server is too old to tell.
    """
    if not before.text or not is_continued(body):
        return None
    limit = body["options"].get("num_predict")
    left = limit - before.output_tokens if isinstance(limit, int) and limit > 0 else None
    if left is not None and left <= 0:
        return Continuation(GENERATE_PATH, None)
    if "\ufffd" in before.text or thinks(body):  # a character that a server puts in the place of bytes that are none
        return None
    prompt = str(body["prompt"]) if body.get("raw") else rendered(body)
    if prompt is None or not _fits(body, prompt, before, left or 0):
        return None
    whole = prompt + before.text
    # Cut to fit, it would be another prompt: the server is to refuse it instead.
    rest = {key: value for key, value in body.items() if key not in _OF_A_PROMPT} | {"truncate": False}
    if left is not None:
        rest["options"] = {**body["options"], "num_predict": left}
    if not body.get("raw") and not body.get("template"):
        chat = {**rest, "messages": _messages(body, before.text)}
        shown = rendered(chat)
        if shown == whole:
            return Continuation(CHAT_PATH, chat)
        if shown is None or _stands_between(shown, prompt, before.text):
            return None
    return Continuation(GENERATE_PATH, {**rest, "prompt": whole, "raw": True})


def _has_images(body: Body) -> bool:
    return any(isinstance(message, Mapping) and message.get("images") for message in body.get("messages", ()))


def _fits(body: Body, prompt: str, before: PartialOutput, left: int) -> bool:
    """Say whether all that the model would have seen in the end fits into its context, if that is known."""
    num_ctx = body["options"].get("num_ctx")
    if not isinstance(num_ctx, int) or num_ctx <= 0:
        return True
    return math.ceil(len(prompt.encode()) / BYTES_A_TOKEN) + before.output_tokens + left <= num_ctx


def _messages(body: Body, text: str) -> list[Any]:
    if "messages" in body:
        messages = list(body["messages"])
    else:
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        messages = [*system, {"role": "user", "content": body["prompt"]}]
    last = messages[-1] if messages else None
    if isinstance(last, Mapping) and last.get("role") == "assistant":  # the caller began the answer
        return [*messages[:-1], {**last, "content": f"{last.get('content') or ''}{text}"}]
    return [*messages, {"role": "assistant", "content": text}]


def _stands_between(shown: str, prompt: str, text: str) -> bool:
    return shown.startswith(prompt) and not shown[len(prompt) :].lstrip().startswith(text.strip())
