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
from gpuqueue.simulators.ollama.rendering import read_back

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


def _seen(prompt: Prompt) -> tuple[str, str]:
    """Return what a model sees of a prompt, and the words that it answers to; no renderer keeps all of the white space.

    A text is the same as one message from a user, with a message from the system before it as one text.
    """
    if isinstance(prompt, str):
        said = [prompt]
    elif [message.get("role") for message in prompt] in (["user"], ["system", "user"]):
        said = [str(message.get("content") or "") for message in prompt]
    else:
        text = " ".join(as_text(prompt).split())
        return text, str(prompt[-1].get("content") or "") if prompt else text
    text = " ".join(" ".join(said).split())
    return text, text


def answer_tokens(model: str | ModelSpec, prompt: Prompt, count: int) -> list[str]:
    """Return the first `count` tokens of the model's answer, each with its trailing blank; a longer answer only adds tokens."""
    text, spoken = _seen(prompt)
    digest = _digest(model, text)
    tokens = [f"{_OPENING}{digest}: ", *(f"{word} " for word in spoken.split()[-_ECHOED_WORD_COUNT:])]
    chosen = random.Random(digest)
    while len(tokens) < count:
        tokens.append(f"{chosen.choice(_FILLER)} ")
    return tokens[:count]


def planned_tokens(model: str | ModelSpec, prompt: Prompt, num_predict: int | None, begun: str = "") -> tuple[list[str], str]:
    """Return the tokens that a request will get and its `done_reason`.

    `begun` is the beginning of the answer in the prompt: continued byte for byte if it is the model's own, else answered anew.
    `num_predict` counts new tokens; None, 0 and below stand for the model's own length.
    """
    said_count, rest = _rest_of_begun(model, prompt, begun)
    asked: Prompt = prompt
    if begun and not said_count:
        asked = f"{as_text(prompt)} {begun}"
    limited = num_predict is not None and num_predict > 0
    wanted = (num_predict or 0) - bool(rest) if limited else max(0, _default_token_count(model) - said_count)
    new = answer_tokens(model, asked, said_count + wanted)[said_count:]
    return ([rest] if rest else []) + new, "length" if limited else "stop"


def planned_raw_tokens(model: str | ModelSpec, prompt: str, num_predict: int | None) -> tuple[list[str], str]:
    """Return what `planned_tokens` does, for a prompt as it reaches the model: rendered from a conversation, or any text."""
    found = read_back(prompt)
    if found is not None:
        return planned_tokens(model, found.messages, num_predict, found.begun)
    opening = prompt.rfind(_OPENING)
    if opening > 0 and _rest_of_begun(model, prompt[:opening], prompt[opening:])[0]:
        return planned_tokens(model, prompt[:opening], num_predict, prompt[opening:])
    return planned_tokens(model, prompt, num_predict)


def _rest_of_begun(model: str | ModelSpec, prompt: Prompt, begun: str) -> tuple[int, str]:
    """Return how many tokens of its answer the model has begun, 0 if these are not its own words, and the rest of the last."""
    tokens = answer_tokens(model, prompt, len(begun.split()) + 1) if begun else []
    whole = ""
    for number, token in enumerate(tokens, start=1):
        whole += token
        if len(whole) >= len(begun):
            return (number, whole[len(begun) :]) if whole.startswith(begun) else (0, "")
    return 0, ""


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
