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


def expected_bytes(info: Mapping[str, Any], weights_bytes: int, num_ctx: int | None = None) -> int:
    """Return the device memory that a model is expected to take with one request at a time.

    `info` is `model_info` of `/api/show`, `weights_bytes` the model's size on disk, `num_ctx` its context in tokens.
    """
    return weights_bytes + kv_cache_bytes(info, num_ctx) + BUFFER_BYTES + CONTEXT_BYTES


def kv_cache_bytes(info: Mapping[str, Any], num_ctx: int | None = None) -> int:
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
    cells = min(num_ctx or DEFAULT_NUM_CTX, number("context_length", num_ctx or DEFAULT_NUM_CTX))
    window = number("attention.sliding_window", cells)
    windowed_cells = min(cells, window + BATCH_CELLS)
    pattern = info.get(f"{kind}.attention.sliding_window_pattern")
    total = 0
    for layer in range(layers - number("attention.shared_kv_layers")):
        slides = bool(pattern[layer]) if isinstance(pattern, Sequence) and layer < len(pattern) else False
        count = kv_heads[layer] if isinstance(kv_heads, Sequence) and layer < len(kv_heads) else kv_heads
        if not isinstance(count, int):
            return 0
        total += (windowed_cells * sliding if slides else cells * whole) * count * F16_BYTES
    return total
