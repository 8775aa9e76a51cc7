"""Derives the words and vectors of simulated models from their prompts, so that tests notice a mix-up.

It must send nothing and know no request.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from gpuqueue.simulators.ollama.models import DEFAULT_MODELS, ModelSpec, tagged

_OPENING = "Answer to "
_FILLER = (
    "the",
    "card",
    "holds",
    "one",
    "model",
    "while",
    "a",
    "short",
    "request",
    "never",
    "waits",
    "behind",
    "long",
    "batches",
)
_ECHOED_WORD_COUNT = 8
_DEFAULT_ANSWER_TOKEN_COUNT = ModelSpec("any", 1).answer_token_count

Prompt = str | Sequence[Mapping[str, object]]


def token_count(text: str) -> int:
    """Return how many tokens `text` counts as: one for each four characters, at least one."""
    return max(1, math.ceil(len(text) / 4))


def as_text(prompt: Prompt) -> str:
    """Return a chat's messages as the one text a model would see; a string is that text already."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in prompt)


def _default_token_count(model: str | ModelSpec) -> int:
    if isinstance(model, ModelSpec):
        return model.answer_token_count
    known = {spec.tagged_name: spec.answer_token_count for spec in DEFAULT_MODELS}
    return known.get(tagged(model), _DEFAULT_ANSWER_TOKEN_COUNT)


def _name(model: str | ModelSpec) -> str:
    return model.tagged_name if isinstance(model, ModelSpec) else tagged(model)


def _digest(model: str | ModelSpec, text: str) -> str:
    return hashlib.sha256(f"{_name(model)}\n{text}".encode()).hexdigest()[:8]


def answer_tokens(model: str | ModelSpec, prompt: Prompt, count: int) -> list[str]:
    """Return the first `count` tokens of the model's answer, each with its trailing blank; a longer answer only adds tokens."""
    text = as_text(prompt)
    digest = _digest(model, text)
    spoken = text if isinstance(prompt, str) or not prompt else str(prompt[-1].get("content", ""))
    tokens = [f"{_OPENING}{digest}: ", *(f"{word} " for word in spoken.split()[:_ECHOED_WORD_COUNT])]
    chosen = random.Random(digest)
    while len(tokens) < count:
        tokens.append(f"{chosen.choice(_FILLER)} ")
    return tokens[:count]


def planned_tokens(model: str | ModelSpec, prompt: Prompt, num_predict: int | None) -> tuple[list[str], str]:
    """Return the tokens that a request will get and its `done_reason`.

    A trailing assistant message that is the start of the model's own answer is continued after its last token.
    `num_predict` counts new tokens; None, 0 and below stand for the model's own length.
    """
    said: list[str] = []
    asked: Prompt = prompt
    continues = not isinstance(model, ModelSpec) or model.continues
    if continues and not isinstance(prompt, str) and prompt and prompt[-1].get("role") == "assistant":
        said, asked = _said_so_far(model, prompt[:-1], str(prompt[-1].get("content", ""))), prompt[:-1]
        if not said:
            asked = prompt
    total = _default_token_count(model)
    if num_predict is not None and num_predict > 0:
        return answer_tokens(model, asked, len(said) + num_predict)[len(said) :], "length"
    return answer_tokens(model, asked, max(total, len(said)))[len(said) :], "stop"


def planned_raw_tokens(model: str | ModelSpec, prompt: str, num_predict: int | None) -> tuple[list[str], str]:
    """Return what `planned_tokens` does, for a raw prompt: always continued if it ends inside the model's own answer."""
    opening = prompt.rfind(_OPENING)
    asked = prompt[:opening] if opening > 0 else prompt
    said = _said_so_far(model, asked, prompt[opening:]) if opening > 0 else []
    if not said:
        return planned_tokens(model, prompt, num_predict)
    if num_predict is not None and num_predict > 0:
        return answer_tokens(model, asked, len(said) + num_predict)[len(said) :], "length"
    return answer_tokens(model, asked, max(_default_token_count(model), len(said)))[len(said) :], "stop"


def _said_so_far(model: str | ModelSpec, asked: Prompt, partial: str) -> list[str]:
    tokens = answer_tokens(model, asked, len(partial.split()) + 1)
    said: list[str] = []
    while tokens and len("".join(said).rstrip()) < len(partial.rstrip()):
        said.append(tokens.pop(0))
    return said if "".join(said).rstrip() == partial.rstrip() else []


def expected_answer(model: str | ModelSpec, prompt: Prompt, num_predict: int | None = None) -> str:
    """Return the whole text that the simulator answers with, to compare with what a job got.

    model: a name, or a spec if its answer length is not the default one.
    prompt: `/api/generate`'s prompt (with a `system`: that text, two line breaks and the prompt), or `/api/chat`'s messages.
    """
    tokens, _ = planned_tokens(model, prompt, num_predict)
    return "".join(tokens)


@lru_cache(maxsize=4096)
def _raw_embedding(name: str, text: str, length: int) -> tuple[float, ...]:
    drawn = random.Random(hashlib.sha256(f"{name}\n{text}".encode()).digest())
    return tuple(round(drawn.uniform(-1.0, 1.0), 7) for _ in range(length))


def raw_embedding(spec: ModelSpec, text: str) -> list[float]:
    """Return the vector of the older `/api/embeddings`: not normalised."""
    return list(_raw_embedding(spec.tagged_name, text, spec.embedding_length))


def expected_embedding(spec: ModelSpec, text: str, dimensions: int | None = None) -> list[float]:
    """Return the unit vector that `/api/embed` answers with for `text`, cut to `dimensions` before it is normalised."""
    vector = _raw_embedding(spec.tagged_name, text, spec.embedding_length)
    kept = vector[:dimensions] if dimensions and dimensions > 0 else vector
    norm = math.sqrt(sum(value * value for value in kept)) or 1.0
    return [round(value / norm, 8) for value in kept]
