"""What a model's description lets expect of its memory, beside figures that Ollama logged."""

from __future__ import annotations

import pytest

from gpuqueue.executors.ollama_sizes import expected_bytes, is_one_at_once, kv_cache_bytes
from gpuqueue.simulators.ollama import GEMMA4_E4B, NOMIC_EMBED_TEXT

MIB = 2**20
LLAMA = {
    "general.architecture": "llama",
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.block_count": 32,
    "llama.context_length": 131_072,
    "llama.embedding_length": 4096,
}


@pytest.mark.parametrize(
    ("info", "num_ctx", "mib"),
    [
        pytest.param(LLAMA, None, 512, id="every layer keeps the whole context"),
        pytest.param(LLAMA, 8192, 1024, id="twice the context"),
        pytest.param(GEMMA4_E4B.show_info(), None, 104, id="sliding windows and shared layers"),
        pytest.param({**LLAMA, "llama.attention.head_count_kv": [8] * 16 + [4] * 16}, None, 384, id="heads by layer"),
        pytest.param({**LLAMA, "llama.context_length": 2048}, 8192, 256, id="no more context than the model has"),
        pytest.param({}, None, 0, id="nothing is said"),
        pytest.param({**LLAMA, "llama.attention.head_count_kv": "eight"}, None, 0, id="nonsense is said"),
    ],
)
def test_the_key_and_value_cache_is_as_large_as_ollama_logs_it(info, num_ctx, mib) -> None:
    assert kv_cache_bytes(info, num_ctx) == mib * MIB


@pytest.mark.parametrize(
    ("info", "parallel", "mib"),
    [
        pytest.param(LLAMA, 3, 1536, id="each request has the whole context"),
        pytest.param(GEMMA4_E4B.show_info(), 2, 188, id="a sliding window for each request, and one batch"),
    ],
)
def test_a_model_that_serves_several_requests_keeps_a_context_for_each(info, parallel, mib) -> None:
    assert kv_cache_bytes(info, parallel=parallel) == mib * MIB
    assert expected_bytes(info, 10**9, parallel=parallel) - expected_bytes(info, 10**9) == mib * MIB - kv_cache_bytes(info)


@pytest.mark.parametrize(
    ("shown", "is_single"),
    [
        ({"details": {"family": "gemma4"}, "capabilities": ["completion", "tools"]}, False),
        ({"details": {"family": "nomic-bert"}, "capabilities": ["embedding"]}, True),
        ({"details": {"family": "qwen35"}, "capabilities": ["completion"]}, True),
        ({"details": {"family": "qwen3next"}}, True),
        ({"details": {"family": "llama"}, "capabilities": []}, False),
        ({}, False),
    ],
)
def test_a_model_that_only_embeds_and_some_families_take_one_request_at_a_time(shown, is_single) -> None:
    assert is_one_at_once(shown) is is_single


def test_weights_buffers_and_the_context_of_the_runner_come_on_top() -> None:
    expected = expected_bytes(LLAMA, 4_700_000_000)
    assert 4_700_000_000 + 512 * MIB < expected < 6_100_000_000
    assert expected_bytes(NOMIC_EMBED_TEXT.show_info(), 274_000_000) > 274_000_000 + 457 * MIB
