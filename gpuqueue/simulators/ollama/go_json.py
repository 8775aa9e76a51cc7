"""Reads request bodies the way Ollama's Go decoder does, with its error texts; knows no endpoint's meaning."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

FOREVER = math.inf
_LONGEST_NS = 2**63 - 1
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")
_THINK_WORDS = ("high", "medium", "low", "max")
_THINK_CHOICES = '"high", "medium", "low", "max", true, or false'

# The Go types of the fields that are checked; `any` takes everything, other words have their own reader.
FIELDS: dict[str, dict[str, str]] = {
    "GenerateRequest": {
        "model": "string",
        "prompt": "string",
        "suffix": "string",
        "system": "string",
        "template": "string",
        "context": "[]int",
        "stream": "bool",
        "raw": "bool",
        "format": "any",
        "keep_alive": "duration",
        "images": "images",
        "options": "map[string]interface {}",
        "think": "think",
        "truncate": "bool",
        "shift": "bool",
        "logprobs": "bool",
        "top_logprobs": "int",
        "_debug_render_only": "bool",
    },
    "ChatRequest": {
        "model": "string",
        "messages": "messages",
        "stream": "bool",
        "format": "any",
        "keep_alive": "duration",
        "tools": "api.Tools",
        "options": "map[string]interface {}",
        "think": "think",
        "truncate": "bool",
        "shift": "bool",
        "logprobs": "bool",
        "top_logprobs": "int",
        "_debug_render_only": "bool",
    },
    "EmbedRequest": {
        "model": "string",
        "input": "any",
        "keep_alive": "duration",
        "truncate": "bool",
        "dimensions": "int",
        "options": "map[string]interface {}",
    },
    "EmbeddingRequest": {
        "model": "string",
        "prompt": "string",
        "keep_alive": "duration",
        "options": "map[string]interface {}",
    },
    "ShowRequest": {"model": "string", "name": "string", "system": "string", "template": "string", "verbose": "bool"},
    "PullRequest": {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"},
}


class BadRequest(Exception):
    """The body cannot be read; the message is Ollama's, to be answered with status 400."""


def read_request(kind: str, body: bytes) -> dict[str, object]:
    """Return the fields of a request of `kind` (a key of `FIELDS`); unknown fields and nulls are left out.

    keep_alive comes as seconds, negative ones as `FOREVER`; images come as bytes.
    Raises: BadRequest.
    """
    fields = FIELDS[kind]
    read: dict[str, object] = {}
    for name, value in _read_object(kind, body).items():
        if name in fields and value is not None:
            read[name] = _read_field(kind, name, fields[name], value)
    return read


def _read_object(kind: str, body: bytes) -> dict[str, object]:
    if not body.strip():
        raise BadRequest("missing request body")
    text = body.decode("utf-8", "replace")
    begin = len(text) - len(text.lstrip())
    try:
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, begin)
    except json.JSONDecodeError as error:
        raise BadRequest(_syntax_error(text, error)) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"json: cannot unmarshal {_json_type(value)} into Go value of type api.{kind}")
    return value


def _refuse_constant(name: str) -> object:
    raise BadRequest(f"invalid character {name[0]!r} looking for beginning of value")


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].lstrip()
    if not rest or error.msg.startswith("Unterminated string"):
        return "unexpected EOF"
    found = rest[0]
    if error.msg.startswith("Expecting property name") or error.msg.startswith("Illegal trailing comma"):
        place = "looking for beginning of object key string"
    elif error.msg.startswith("Expecting ':'"):
        place = "after object key"
    elif error.msg.startswith("Expecting ','"):
        place = "after object key:value pair" if text[: error.pos].rstrip()[-1] not in "]" else "after array element"
    elif error.msg.startswith("Invalid control character"):
        return f"invalid character {json.dumps(found)[1:-1]!r} in string literal"
    else:
        place = "looking for beginning of value"
    return f"invalid character '{found}' {place}"


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _mismatch(kind: str, name: str, value: object, go_type: str) -> BadRequest:
    return BadRequest(f"json: cannot unmarshal {_json_type(value)} into Go struct field {kind}.{name} of type {go_type}")


def _read_field(kind: str, name: str, go_type: str, value: object) -> object:
    if go_type == "any":
        return value
    if go_type == "duration":
        return _keep_alive_s(value)
    if go_type == "think":
        return _think(value)
    if go_type == "images":
        return _images(kind, name, value)
    if go_type == "messages":
        return _messages(kind, name, value)
    if go_type == "int" and isinstance(value, float):
        raise BadRequest(f"json: cannot unmarshal number {value} into Go struct field {kind}.{name} of type int")
    takes: dict[str, type] = {"string": str, "bool": bool, "int": int, "[]int": list, "api.Tools": list}
    wanted = takes.get(go_type, dict)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise _mismatch(kind, name, value, go_type)
    if go_type == "[]int":
        for number in value if isinstance(value, list) else []:
            if isinstance(number, bool) or not isinstance(number, int):
                raise _mismatch(kind, name, number, "int")
    return value


def _keep_alive_s(value: object) -> float:
    if isinstance(value, bool):
        raise BadRequest("Unsupported type: 'bool'")
    if isinstance(value, (int, float)):
        return float(value) if value >= 0 else FOREVER
    if isinstance(value, str):
        duration_s = parse_duration_s(value)
        return duration_s if duration_s >= 0 else FOREVER
    go_type = "[]interface {}" if isinstance(value, list) else "map[string]interface {}"
    raise BadRequest(f"Unsupported type: '{go_type}'")


def parse_duration_s(text: str) -> float:
    """Return a Go duration such as `5m`, `1h30m` or `-1s` in seconds.

    Raises: BadRequest with Go's text.
    """
    quoted = json.dumps(text, ensure_ascii=False)
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0.0
    if not rest:
        raise BadRequest(f"time: invalid duration {quoted}")
    total_s = 0.0
    while rest:
        part = _DURATION_PART.match(rest)
        if part is None:
            raise BadRequest(f"time: invalid duration {quoted}")
        number, unit = part.groups()
        if not unit:
            raise BadRequest(f"time: missing unit in duration {quoted}")
        if unit not in _UNITS_S:
            raise BadRequest(f"time: unknown unit {json.dumps(unit, ensure_ascii=False)} in duration {quoted}")
        total_s += float(number) * _UNITS_S[unit]
        rest = rest[part.end() :]
    return sign * total_s


def _think(value: object) -> bool | str:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise BadRequest('think must be a boolean or string ("high", "medium", "low", "max", true, or false)')
    if value not in _THINK_WORDS:
        raise BadRequest(f"invalid think value: {json.dumps(value)} (must be {_THINK_CHOICES})")
    return value


def _images(kind: str, name: str, value: object) -> list[bytes]:
    if not isinstance(value, list):
        raise _mismatch(kind, name, value, "[]api.ImageData")
    images = []
    for place, image in enumerate(value):
        if not isinstance(image, str):
            raise _mismatch(kind, f"{name}.{place}", image, "api.ImageData")
        illegal = re.search(r"[^A-Za-z0-9+/=\r\n]", image)
        try:
            images.append(base64.b64decode(image, validate=True))
        except binascii.Error:
            at = illegal.start() if illegal else len(image) // 4 * 4
            raise BadRequest(
                f"json: cannot unmarshal string into {kind}.{name}.{place} of type api.ImageData: "
                f"illegal base64 data at input byte {at}"
            ) from None
    return images


def _messages(kind: str, name: str, value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise _mismatch(kind, name, value, "[]api.Message")
    messages: list[dict[str, object]] = []
    for message in value:
        if not isinstance(message, dict):
            raise _mismatch(kind, name, message, "api.Message")
        for part in ("role", "content"):
            if not isinstance(message.get(part) or "", str):
                raise _mismatch(kind, f"{name}.{part}", message[part], "string")
        messages.append({**message, "role": message.get("role") or "", "content": message.get("content") or ""})
    return messages


def encode(value: Mapping[str, object]) -> bytes:
    """Return `value` as Go's encoder writes it: compact, and with `<`, `>` and `&` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "<" in text or ">" in text or "&" in text:
        text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    # A lone surrogate cannot be UTF-8; Go replaces it.
    return text.encode("utf-8", "replace")


def timestamp(time_ns: int) -> str:
    """Return a time (nanoseconds since 1970) as Go writes it: RFC 3339 in UTC, without trailing zeros."""
    whole_s, rest_ns = divmod(time_ns, 1_000_000_000)
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=whole_s)
    fraction = f".{rest_ns:09d}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def expiry_ns(now_ns: int, real_s: float) -> int:
    """Return the time `real_s` after `now_ns`; `FOREVER` is Go's longest duration, which ends in the 24th century."""
    return now_ns + (_LONGEST_NS if real_s == FOREVER else int(real_s * 1e9))
