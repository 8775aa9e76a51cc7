"""Owns reading the keys that a command's help names, and comparing them with what it printed.

    Keys: at, queues: [{name, paused: {by, until} or null}], counts: {STATE: number}, note (what it means).

A bare key has any value. `{…}` is an object, `[{…}]` a list of them, `{STATE: number}` maps anything to a plain value, and
`as `COMMAND --json`, without a and b` is what another command prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

HelpOf = Callable[[str], str]


@dataclass
class Shape:
    """What a help says of a value: an object's keys in their order, None for any value; and what of it was seen."""

    keys: dict[str, Shape | None] = field(default_factory=dict)
    is_list: bool = False
    is_map: bool = False
    may_be_null: bool = False
    seen: bool = False

    def unseen(self, path: str = "") -> list[str]:
        """The objects inside that no example had."""
        mine = [] if self.seen else [path]
        return mine + [item for key, shape in self.keys.items() if shape for item in shape.unseen(f"{path}.{key}")]


def documented(help_of: HelpOf, command: str, *, when: str = "") -> Shape:
    """Read the keys of a command, as its help gives them; `when` chooses among several: `with --all`."""
    label = f"Keys {when}:" if when else "Keys:"
    text = " ".join(help_of(command).split())
    _, found, rest = text.partition(label)
    assert found, f"the help of {command} has no {label!r}"
    reader = _Reader(rest, help_of)
    shape = reader.value() if rest.lstrip().startswith("as `") else reader.items(end=".")
    assert shape is not None
    return shape


def compare(shape: Shape, value: Any, path: str = "") -> None:
    """Fail where the value has other keys than the help names, or has them in another order."""
    if value is None:
        assert shape.may_be_null, f"{path} is null, and the help does not say so"
        return
    for item in value if shape.is_list else [value]:
        assert isinstance(item, dict), f"{path}: {item!r}"
        shape.seen = True
        if shape.is_map:
            assert not any(isinstance(inner, dict | list) for inner in item.values()), path
            continue
        assert list(item) == list(shape.keys), f"{path or 'top'}: the help names {list(shape.keys)}"
        for key, inner in shape.keys.items():
            if inner is not None:
                compare(inner, item[key], f"{path}.{key}")
            else:
                undocumented = isinstance(item[key], dict) or (isinstance(item[key], list) and _has_objects(item[key]))
                assert not undocumented or key in FREE, f"{path}.{key} has keys that the help does not name"


FREE = ("arguments", "result")  # whatever the application puts there


def _has_objects(value: list[Any]) -> bool:
    return any(isinstance(item, dict) for item in value)


class _Reader:
    def __init__(self, text: str, help_of: HelpOf) -> None:
        self._text = text.lstrip()
        self._help_of = help_of

    def _take(self, pattern: str) -> re.Match[str] | None:
        match = re.match(pattern, self._text)
        if match:
            self._text = self._text[match.end() :].lstrip()
        return match

    def items(self, end: str) -> Shape:
        """Read `name (note): value, …` up to the end's sign."""
        shape = Shape()
        while True:
            name = self._take(r"[a-z_][a-z0-9_]*\b")
            assert name, f"a key is expected at: {self._text[:60]}"
            assert name[0] not in shape.keys, f"{name[0]} is named twice"
            self._take(r"\((?:[^()]|\([^()]*\))*\)")
            shape.keys[name[0]] = self.value() if self._take(":") else None
            if self._take(re.escape(end)):
                return shape
            assert self._take(","), f"a comma is expected at: {self._text[:60]}"

    def value(self) -> Shape | None:
        if self._take(r"\["):
            assert self._text.startswith(("{", "as `")), self._text[:60]
            shape = self.value()
            assert shape is not None
            assert self._take(r"\]"), self._text[:60]
            shape.is_list = True
            shape.may_be_null = self._take("or null") is not None
            return shape
        if self._text.startswith("as `"):
            return self._reference()
        assert self._take(r"\{"), f"an object is expected at: {self._text[:60]}"
        if self._take(r"[A-Z]+: \w+\}"):
            shape = Shape(is_map=True)
        elif self._text.startswith("as `"):
            shape = self._reference()
            assert self._take(r"\}"), self._text[:60]
        else:
            shape = self.items(end="}")
        shape.may_be_null = self._take("or null") is not None
        return shape

    def _reference(self) -> Shape:
        match = self._take(r"as `([a-z ]+) --json`")
        assert match
        shape = documented(self._help_of, match[1])
        without = self._take(r", without ((?:[a-z_]+(?:, | and )?)+)(?=[\]}.])")
        for key in re.split(", | and ", without[1]) if without else ():
            del shape.keys[key]
        return shape
