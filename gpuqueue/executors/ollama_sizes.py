"""Estimates a model's device memory from Ollama's description of it; a later measurement replaces the estimate.

Source: Ollama's `/api/show` and `/api/tags`, and its memory arithmetic: weights + KV cache + compute buffers + the runner's
CUDA context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DEFAULT_NUM_CTX = 4096  # Ollama's default, for cards below 24 GB
CONTEXT_BYTES = 457 * 2**20  # the CUDA context of a runner
BUFFER_BYTES = 256 * 2**20  # for computing; grows with the batch
BATCH_CELLS = 512
F16_BYTES = 2


# Ollama runs these families one request at a time, whatever OLLAMA_NUM_PARALLEL says (its scheduler, v0.34).
SINGLE = frozenset(
    {
        "mllama",
        *("qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next"),
        *("lfm2", "lfm2moe"),
        *("nemotron_h", "nemotron_h_moe", "nemotron_h_omni"),
    }
)


def is_one_at_once(shown: Mapping[str, Any]) -> bool:
    """Say whether Ollama runs a model one request at a time however it was started; so it runs all that only embed.

    `shown` is the answer of `/api/show`.
    """
    details, capabilities = shown.get("details"), shown.get("capabilities")
    family = details.get("family") if isinstance(details, Mapping) else None
    only_embeds = isinstance(capabilities, Sequence) and len(capabilities) > 0 and "completion" not in capabilities
    return family in SINGLE or only_embeds


def expected_bytes(info: Mapping[str, Any], weights_bytes: int, num_ctx: int | None = None, *, parallel: int = 1) -> int:
    """Return the device memory that a model is expected to take, loaded for `parallel` requests at once.

    `info` is `model_info` of `/api/show`, `weights_bytes` the model's size on disk, `num_ctx` the context of a request in tokens.
    """
    return weights_bytes + kv_cache_bytes(info, num_ctx, parallel=parallel) + BUFFER_BYTES + CONTEXT_BYTES


def kv_cache_bytes(info: Mapping[str, Any], num_ctx: int | None = None, *, parallel: int = 1) -> int:
    """Return the bytes of the key and value cache at f16, 0 if the description is incomplete."""
    kind = str(info.get("general.architecture") or "")

    def number(name: str, default: int = 0) -> int:
        value = info.get(f"{kind}.{name}")
        return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else default

    heads = number("attention.head_count")
    kv_heads = info.get(f"{kind}.attention.head_count_kv", heads)
    layers = number("block_count")
    if not heads or not layers:
        return 0
    per_head = number("embedding_length") // heads
    whole = number("attention.key_length", per_head) + number("attention.value_length", per_head)
    sliding = number("attention.key_length_swa", whole // 2) + number("attention.value_length_swa", whole - whole // 2)
    context = min(num_ctx or DEFAULT_NUM_CTX, number("context_length", num_ctx or DEFAULT_NUM_CTX))
    cells = context * parallel
    window = number("attention.sliding_window", context)
    windowed_cells = min(cells, window * parallel + BATCH_CELLS)
    pattern = info.get(f"{kind}.attention.sliding_window_pattern")
    total = 0
    for layer in range(layers - number("attention.shared_kv_layers")):
        slides = bool(pattern[layer]) if isinstance(pattern, Sequence) and layer < len(pattern) else False
        count = kv_heads[layer] if isinstance(kv_heads, Sequence) and layer < len(kv_heads) else kv_heads
        if not isinstance(count, int):
            return 0
        total += (windowed_cells * sliding if slides else cells * whole) * count * F16_BYTES
    return total
