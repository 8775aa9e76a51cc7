"""Owns reading server-sent events in tests, as a browser does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple


class Heard(NamedTuple):
    """One event: its name, its data, and the id that the browser would come back with."""

    name: str
    data: Any
    last_id: str


def heard(lines: Iterable[str]) -> Iterator[Heard]:
    """Read events from lines; comments are events without a name."""
    name, data, last_id = "", "", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif field == "id":
            last_id = value
        elif not line:
            if name:
                yield Heard(name, json.loads(data), last_id)
            name, data = "", ""
        elif not field:
            yield Heard("", None, last_id)


def heard_in(chunks: Iterable[bytes]) -> Iterator[Heard]:
    """Read events from what `stream` yields."""
    return heard(line for chunk in chunks for line in chunk.decode().split("\n")[:-1])


def text_of(events: Iterable[Heard]) -> str:
    """What a page shows in the end: the pieces, from the last restart."""
    text = ""
    for event in events:
        if event.name == "restart":
            text = ""
        elif event.name == "piece":
            text += event.data["text"]
    return text
