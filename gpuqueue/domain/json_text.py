"""Encodes values as JSON text: checked, bounded, readable again as they were, and without strings that SQLite cannot store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gpuqueue.domain.errors import PayloadError
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.units import format_size

NO_ARGUMENTS = "{}"
# A reader decodes with a stack of its own, which is shorter than the one that encoded.
DEEPEST = 500
SHORT = 2 * DEEPEST  # characters that cannot hold so many levels
LONGEST_KEY = 40  # characters of one that a message shows

_encoder = json.JSONEncoder(allow_nan=False, ensure_ascii=False, check_circular=False, separators=(",", ":"))


# `encode` would create this for each value, which costs as much as encoding a small one; None without the C accelerator.
_make_chunks = getattr(json.encoder, "c_make_encoder", None)
_chunks = _make_chunks and _make_chunks(
    None, _encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
)
# The encoder makes text of a key that is none; only text like this can come of it.
_seems_converted = re.compile(r'"(?:-?[0-9][^"]*|true|false|null)":').search
_PLAIN = frozenset({str, int, float, bool, type(None)})


def to_json(value: Any, limit_bytes: int, what: str) -> str:
    """Encode a value that must be JSON.

    Raises: PayloadError, naming `what`, if the value is not JSON, takes more than `limit_bytes`, is nested more than DEEPEST
    levels, or has a key that is not text: readers would see other keys, and fewer if "1" is there beside 1.
    """
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value) and (refusal := _refusal(value, what)):
        raise refusal
    return named_to_json(value, limit_bytes, what)


def named_to_json(value: Any, limit_bytes: int, what: str) -> str:
    """Encode a value that must be JSON, and whose own keys are text if it is a dict. Raises: as `to_json`."""
    try:
        text = "".join(_chunks(value, 0)) if _chunks else _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(value, what) or PayloadError(
            f"{what} must be JSON (strings, numbers, booleans, None, lists, dicts with string keys): {error}"
        ) from None
    # Most arguments are short and have no dict inside: every enqueue passes through here.
    if (len(text) > SHORT or text.rfind("{")) and (_seems_converted(text) or text.count("[") + text.count("{") > DEEPEST):
        refusal = _refusal(value, what)
        if refusal is not None:
            raise refusal
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


def _refusal(value: Any, what: str) -> PayloadError | None:
    """Return why a reader would not see the value as it is; None if it would."""
    level = [value]
    for _ in range(DEEPEST):
        for box in level:
            for key in box if isinstance(box, dict) else ():
                if not isinstance(key, str):
                    path = _path_to(box, value)
                    of = f" of {path}" if path else ""
                    return PayloadError(f"{what}: the key {safe_repr(key, LONGEST_KEY)}{of} must be text; JSON has no other keys")
        # By identity: a list may lie in many others, or in itself.
        level = list({id(item): item for box in level for item in _inside(box) if type(item) not in _PLAIN}.values())
        if not level:
            return None
    deepest = next((item for item in level if isinstance(item, dict | list | tuple)), None)
    if deepest is None:
        return None
    return PayloadError(
        f"{what}: {_path_to(deepest, value)[:40]}… is nested more deeply than the limit of {DEEPEST} levels. "
        "Store the data in a file and pass its path"
    )


def _inside(box: Any) -> Any:
    if isinstance(box, dict):
        return box.values()
    return box if isinstance(box, list | tuple) else ()


def _path_to(sought: Any, value: Any) -> str:
    """Return where a box lies in a value, as `x.when[0]`; "" for the value itself."""
    paths = {id(value): ("", value)}
    for _ in range(DEEPEST + 1):
        if id(sought) in paths:
            return paths[id(sought)][0]
        paths = {id(item): (found, item) for path, box in paths.values() for found, item in _steps(path, box)}
    return ""


def _steps(path: str, box: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(box, dict):
        for key, item in box.items():
            if isinstance(key, str) and key.isidentifier():
                yield f"{path}.{key}" if path else key, item
            else:
                yield f"{path}[{safe_repr(key, LONGEST_KEY)}]", item
    elif isinstance(box, list | tuple):
        for number, item in enumerate(box):
            yield f"{path}[{number}]", item
