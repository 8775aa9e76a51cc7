"""Defines what is known about models without a backend: the verbs that run them, and when two names mean the same model.

Here a *model* is a neural network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Verb:
    """A kind of request to a model, with its required and its allowed arguments."""

    name: str
    required: frozenset[str]
    allowed: frozenset[str]


_GENERATING = frozenset({"model", "format", "options", "think", "truncate", "shift", "logprobs", "top_logprobs"})

GENERATE = Verb(
    "ollama.generate",
    required=frozenset({"model", "prompt"}),
    allowed=_GENERATING | {"prompt", "suffix", "system", "template", "context", "raw", "images"},
)
CHAT = Verb("ollama.chat", required=frozenset({"model", "messages"}), allowed=_GENERATING | {"messages", "tools"})
EMBED = Verb(
    "ollama.embed",
    required=frozenset({"model", "input"}),
    allowed=frozenset({"model", "input", "dimensions", "truncate", "options"}),
)
VERBS: Mapping[str, Verb] = {verb.name: verb for verb in (GENERATE, CHAT, EMBED)}


@lru_cache(maxsize=1024)
def full_name(model: str) -> str:
    """Normalise a model's name so that two names of the same model are equal, by Ollama's rules.

    Adds the tag `latest`, drops the default registry and library, and folds case.
    """
    name = model.strip().casefold()
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    # A registry's port has a colon too, so only the last part is checked for a tag.
    return name if not name or ":" in name.rpartition("/")[2] else f"{name}:latest"
