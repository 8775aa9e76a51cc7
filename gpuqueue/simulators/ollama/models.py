"""Defines the simulated models: names, sizes, speeds and what `/api/show` reports; loads and answers nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

DEFAULT_NUM_CTX = 4096
# Ollama runs these families, and models that only embed, with one slot.
_SINGLE_FAMILIES = ("mllama", "qwen35", "qwen3next", "qwen3vl", "lfm2", "nemotron_h")
_NAME = re.compile(r"(?:[A-Za-z0-9_][\w.:-]*/)?(?:[A-Za-z0-9_][\w-]*/)?[A-Za-z0-9_][\w.-]*(?::[A-Za-z0-9_][\w.-]*)?\Z", re.ASCII)


def is_valid_name(name: str) -> bool:
    """Say whether Ollama would accept `name` as a model's name: [host/][namespace/]model[:tag]."""
    return _NAME.match(name) is not None


def tagged(name: str) -> str:
    """Return `name` as `/api/ps` shows it: always with a tag, `latest` unless it has one."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model that the simulated Ollama has.

    bytes: the memory it needs on the card at a num_ctx of 4096 (or its whole context, if that is smaller).
    capabilities: Ollama's words: completion, embedding, tools, thinking, insert, vision.
    tokens_per_s: simulated decoding speed if all of it is on the card.
    context_length: the longest context it supports, in tokens; num_ctx is cut to it.
    context_token_bytes: the memory that one more token of num_ctx takes on the card.
    answer_token_count: tokens of an answer without `num_predict`.
    native_chat: the runner renders chats itself; a chat that is too long is then refused instead of cut.
    continues: a trailing assistant message is continued instead of answered.
    model_info: `/api/show`'s; empty stands for a plain one derived from the fields above.
    """

    name: str
    bytes: int
    capabilities: tuple[str, ...] = ("completion",)
    tokens_per_s: float = 60.0
    family: str = "llama"
    parameter_size: str = "8B"
    quantization: str = "Q4_K_M"
    context_length: int = 8192
    context_token_bytes: int = 0
    layer_count: int = 32
    embedding_length: int = 768
    answer_token_count: int = 64
    native_chat: bool = False
    continues: bool = True
    model_info: Mapping[str, object] = field(default_factory=dict)

    @property
    def tagged_name(self) -> str:
        """The name with its tag, as `/api/ps` shows it."""
        return tagged(self.name)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that stand for the model's content."""
        return hashlib.sha256(self.tagged_name.encode()).hexdigest()

    @property
    def details(self) -> dict[str, object]:
        """The `details` object of `/api/ps`, `/api/tags` and `/api/show`."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        }

    def effective_num_ctx(self, num_ctx: int | None) -> int:
        """Return the context that a runner gets, in tokens: the requested one, at most the model's own."""
        return min(num_ctx if num_ctx and num_ctx > 0 else DEFAULT_NUM_CTX, self.context_length)

    def slots(self, num_parallel: int) -> int:
        """Return how many requests a runner takes at once where the server was started for `num_parallel`."""
        return 1 if "completion" not in self.capabilities or self.family in _SINGLE_FAMILIES else num_parallel

    def needed_bytes(self, num_ctx: int, slots: int = 1) -> int:
        """Return the memory that the model needs on the card at an effective `num_ctx`, which each slot has for itself."""
        return max(self.bytes // 2, self.bytes + (num_ctx * slots - self.effective_num_ctx(None)) * self.context_token_bytes)

    def show_info(self) -> dict[str, object]:
        """Return `model_info` of `/api/show`."""
        if self.model_info:
            return dict(self.model_info)
        return {
            "general.architecture": self.family,
            f"{self.family}.attention.head_count": 32,
            f"{self.family}.attention.head_count_kv": 8,
            f"{self.family}.block_count": self.layer_count,
            f"{self.family}.context_length": self.context_length,
            f"{self.family}.embedding_length": self.embedding_length,
        }


GEMMA4_E4B = ModelSpec(
    name="gemma4:e4b",
    bytes=4_500_000_000,
    capabilities=("completion", "tools", "thinking"),
    tokens_per_s=55.0,
    family="gemma4",
    parameter_size="8.0B",
    quantization="Q4_K_M",
    context_length=131_072,
    context_token_bytes=16_384,
    layer_count=42,
    embedding_length=2560,
    answer_token_count=300,
    model_info={
        "general.architecture": "gemma4",
        "general.parameter_count": 7_996_157_674,
        "gemma4.attention.head_count": 8,
        "gemma4.attention.head_count_kv": 2,
        "gemma4.attention.key_length": 512,
        "gemma4.attention.key_length_swa": 256,
        "gemma4.attention.shared_kv_layers": 18,
        "gemma4.attention.sliding_window": 512,
        "gemma4.attention.sliding_window_pattern": [layer % 6 != 5 for layer in range(42)],
        "gemma4.attention.value_length": 512,
        "gemma4.attention.value_length_swa": 256,
        "gemma4.block_count": 42,
        "gemma4.context_length": 131_072,
        "gemma4.embedding_length": 2560,
    },
)

NOMIC_EMBED_TEXT = ModelSpec(
    name="nomic-embed-text",
    bytes=500_000_000,
    capabilities=("embedding",),
    tokens_per_s=400.0,
    family="nomic-bert",
    parameter_size="137M",
    quantization="F16",
    context_length=2048,
    layer_count=12,
    embedding_length=768,
    model_info={
        "general.architecture": "nomic-bert",
        "general.parameter_count": 136_727_040,
        "nomic-bert.attention.causal": False,
        "nomic-bert.attention.head_count": 12,
        "nomic-bert.block_count": 12,
        "nomic-bert.context_length": 2048,
        "nomic-bert.embedding_length": 768,
    },
)

DEFAULT_MODELS: tuple[ModelSpec, ...] = (GEMMA4_E4B, NOMIC_EMBED_TEXT)


def by_tagged_name(models: Iterable[ModelSpec]) -> dict[str, ModelSpec]:
    """Return the models under their tagged names.

    Raises: ValueError for two models of one name, a name Ollama would refuse, or a size that is not above 0.
    """
    named: dict[str, ModelSpec] = {}
    for spec in models:
        if not is_valid_name(spec.name):
            raise ValueError(f"{spec.name!r} is not a model name that Ollama accepts; expected [host/][namespace/]model[:tag]")
        if spec.bytes <= 0 or spec.tokens_per_s <= 0 or spec.layer_count <= 0:
            raise ValueError(f"model {spec.name!r}: bytes, tokens_per_s and layer_count must be greater than 0")
        if spec.tagged_name in named:
            raise ValueError(f"two models are named {spec.tagged_name!r}; give each its own name")
        named[spec.tagged_name] = spec
    return named
