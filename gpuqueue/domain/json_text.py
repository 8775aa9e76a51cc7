"""Encodes values as JSON text: checked, bounded, and without strings that SQLite cannot store."""

from __future__ import annotations

import json
from typing import Any

from gpuqueue.domain.errors import PayloadError
from gpuqueue.domain.units import format_size

NO_ARGUMENTS = "{}"

_encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False, check_circular=False, separators=(",", ":"))


# `encode` would create this for each value, which costs as much as encoding a small one; None without the C accelerator.
_make_chunks = getattr(json.encoder, "c_make_encoder", None)
_chunks = _make_chunks and _make_chunks(
    None, _encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
)


def to_json(value: Any, limit_bytes: int, what: str) -> str:
    """Encode a value that must be JSON.

    Raises: PayloadError, naming `what`, if the value is not JSON or takes more than `limit_bytes`.
    """
    try:
        text = "".join(_chunks(value, 0)) if _chunks else _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise PayloadError(
            f"{what} must be JSON (strings, numbers, booleans, None, lists, dicts with string keys): {error}"
        ) from None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half a surrogate pair: JSON can escape it, but SQLite cannot store it
            text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # A character takes at most 4 bytes, so most strings need no second encoding to be measured.
    if len(text) * 4 > limit_bytes and (size := len(text.encode())) > limit_bytes:
        raise PayloadError(
            f"{what}: {format_size(size)} of JSON exceeds the limit of {format_size(limit_bytes)} (max_payload). "
            "Store the data in a file and pass its path"
        )
    return text
