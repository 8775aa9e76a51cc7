"""Reads the failures of HTTP servers: the reason given, and whether the connection was refused."""

from __future__ import annotations

import json
from typing import Any


def reason_in(text: str) -> str:
    """Return the message in an error's body, shortened: `error`, `message` or `detail`, also of JSON in a string inside JSON."""
    said: Any = text
    for _ in range(4):
        if isinstance(said, str):
            try:
                said = json.loads(said)
            except ValueError:
                break
        if not isinstance(said, dict):
            break
        said = said.get("error") or said.get("message") or said.get("detail") or ""
    return " ".join(str(said).split())[:1000] or "no reason given"


def was_refused(error: BaseException | None) -> bool:
    """Say whether the connection was refused, because nothing listened at the address."""
    # httpcore raises `from None`, so the operating system's error is only in the context.
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None
