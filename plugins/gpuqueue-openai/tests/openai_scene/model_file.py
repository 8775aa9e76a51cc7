"""Writes a tiny model for llama.cpp, a GGUF file of some hundred kilobytes that always gives the same answer.

Its only layer is all zeros, so that each token is followed by the one that the output matrix names for it, whatever came
before. After a prompt it counts: one two three one two three …, for ever.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path

WIDTH = 64
STRAIGHT = 4.0  # in the output matrix; after the norm the other tokens are 32 below it
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
WORDS = ("▁one", "▁two", "▁three")
THOUGHT = ("<think>", "▁hmm", "</think>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_model(path: Path, *, thinks: bool = False) -> None:
    """Write the model; one that `thinks` says `<think> hmm</think>` before it counts."""
    first, *rest = (*THOUGHT, *WORDS) if thinks else WORDS
    follows = {None: first, **{letter: first for letter in LETTERS}}
    follows |= dict(zip((first, *rest), (*rest, WORDS[0]), strict=True))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS, *THOUGHT, *LETTERS]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(tokens) - 259)]
    own_row = {token: row for row, token in enumerate((*WORDS, *THOUGHT, *LETTERS), start=1)}  # all others share row 0
    embedding, output = (array("f", bytes(4 * len(tokens) * WIDTH)) for _ in range(2))
    for position, token in enumerate(tokens):
        embedding[position * WIDTH + own_row.get(token, 0)] = 1.0
    for before, after in follows.items():
        output[tokens.index(after) * WIDTH + (own_row[before] if before else 0)] = STRAIGHT
    ones, zeros = array("f", [1.0] * WIDTH), array("f", bytes(4 * WIDTH * WIDTH))
    layer = {f"blk.0.{name}.weight": ((WIDTH,), ones) for name in ("attn_norm", "ffn_norm")}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        layer[f"blk.0.{name}.weight"] = ((WIDTH, WIDTH), zeros)
    tensors: dict[str, tuple[tuple[int, ...], array[float]]] = {
        "token_embd.weight": ((WIDTH, len(tokens)), embedding),
        "output_norm.weight": ((WIDTH,), ones),
        "output.weight": ((WIDTH, len(tokens)), output),
        **layer,
    }
    described = [
        _text_of("general.architecture", "llama"),
        _number_of("llama.context_length", 4096),
        _number_of("llama.embedding_length", WIDTH),
        _number_of("llama.feed_forward_length", WIDTH),
        _number_of("llama.block_count", 1),
        _number_of("llama.attention.head_count", 1),
        _text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", FLOAT32, 1e-5),
        _text_of("tokenizer.ggml.model", "llama"),
        _list_of("tokenizer.ggml.tokens", STRING, map(_text, tokens)),
        _list_of("tokenizer.ggml.scores", FLOAT32, (struct.pack("<f", -position) for position in range(len(tokens)))),
        _list_of("tokenizer.ggml.token_type", INT32, (struct.pack("<i", kind) for kind in kinds)),
        # Else a part of the template, tokenized alone, is not what it is within a prompt, and no grammar can begin.
        _text("tokenizer.ggml.add_space_prefix") + struct.pack("<I?", BOOL, False),
        _number_of("tokenizer.ggml.unknown_token_id", 0),
        _number_of("tokenizer.ggml.bos_token_id", 1),
        _number_of("tokenizer.ggml.eos_token_id", 2),
    ]
    path.write_bytes(_file(described, tensors))


def _file(described: list[bytes], tensors: Mapping[str, tuple[tuple[int, ...], array[float]]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(described)) + b"".join(described)
    data = b""
    for name, (shape, values) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += _padded(values.tobytes())
    return _padded(head) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 32)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _text_of(key: str, value: str) -> bytes:
    return _text(key) + struct.pack("<I", STRING) + _text(value)


def _number_of(key: str, value: int) -> bytes:
    return _text(key) + struct.pack("<II", UINT32, value)


def _list_of(key: str, kind: int, items: Iterable[bytes]) -> bytes:
    packed = list(items)
    return _text(key) + struct.pack("<IIQ", ARRAY, kind, len(packed)) + b"".join(packed)
