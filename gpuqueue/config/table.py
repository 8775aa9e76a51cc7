"""Reads typed values from one table of the configuration, each with its origin; knows no setting by name.

A value comes from the file, from an environment variable (as a string), or from an argument; every error says which.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gpuqueue.domain.errors import ConfigurationError, UsageError, did_you_mean
from gpuqueue.domain.names import is_name
from gpuqueue.domain.safe_text import LONGEST_REPR, cut, safe_repr
from gpuqueue.domain.settings import HIGHEST_COUNT
from gpuqueue.domain.units import MAX_SIZE_BYTES, format_size, parse_duration, parse_size

__all__ = ["Origin", "Setting", "Table", "quoted_key", "worded"]

T = TypeVar("T")
D = TypeVar("D")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
LONGEST_NUMBER = 20  # characters; a longer one is wrong anyway, and Python refuses to read very long ones

Origin = Callable[[str], str]  # describes where the value under a dotted key came from


@dataclass(frozen=True, slots=True)
class Setting:
    """One value and where it came from."""

    value: Any
    where: str  # "/srv/gpuqueue.toml: gpu.budget", "environment variable GPUQUEUE_GPU_BUDGET"
    is_text: bool = False  # from the environment, where a number is a string

    def error(self, problem: str) -> ConfigurationError:
        """Return the error that names this value and its origin."""
        return ConfigurationError(f"{self.where} = {_show(self.value)}: {problem}")


class Table:
    """A table of settings and nested tables, under a dotted key."""

    def __init__(self, values: Mapping[str, Any], *, key: str, origin: Origin, is_text: bool = False) -> None:
        self.key = key
        self.where = origin(key)
        self._items: dict[str, Setting | Table | list[Table]] = {}
        for name, value in values.items():
            if not isinstance(name, str):
                raise ConfigurationError(f"{self.where}: the key {safe_repr(name)} must be text")
            dotted = _join(key, name)
            if isinstance(value, Mapping):
                self._items[name] = Table(value, key=dotted, origin=origin, is_text=is_text)
            elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
                self._items[name] = [
                    Table(item, key=f"{dotted}[{number}]", origin=origin, is_text=is_text) for number, item in enumerate(value)
                ]
            else:
                self._items[name] = Setting(value, origin(dotted), is_text)

    def overlay(self, other: Table) -> None:
        """Replace this table's values with the other's, key by key; with several cards, the first card's."""
        for name, item in other._items.items():
            mine = self._items.get(name)
            if isinstance(mine, list) and mine and isinstance(item, Table):
                mine = mine[0]
            if isinstance(mine, Table) and isinstance(item, Table):
                mine.overlay(item)
            else:
                self._items[name] = item

    def without_tables(self, known: Collection[str]) -> tuple[Table, Table]:
        """Split into the tables under keys other than these, and everything else."""
        others, rest = copy(self), copy(self)
        others._items = {key: item for key, item in self._items.items() if key not in known and not isinstance(item, Setting)}
        rest._items = {key: item for key, item in self._items.items() if key not in others._items}
        return others, rest

    def error(self, problem: str) -> ConfigurationError:
        """Return the error that names this table and its origin."""
        return ConfigurationError(f"{self.where}: {problem}")

    def expect(self, known: Iterable[str]) -> None:
        """Reject unknown keys, naming the nearest known one. Raises: ConfigurationError."""
        names = list(known)
        for key, item in self._items.items():
            if key in names:
                continue
            where = _where(item)
            hint = ""
            if isinstance(item, Table) and self.key.count(".") == 1:
                # TOML reads [models.qwen2.5] as a table "5" in a table "qwen2".
                parent, _, name = self.key.partition(".")
                hint = f' A name with a dot needs quotes: [{parent}."{name}.{key}"].'
            raise ConfigurationError(
                f"{where}: unknown setting {key!r}{did_you_mean(key, names)}.{hint} Settings: {', '.join(names)}"
            )

    def given(self) -> dict[str, str]:
        """Return the keys that were given, with their origins: {key: origin}."""
        return {key: _where(item) for key, item in self._items.items()}

    def has(self, key: str) -> bool:
        """Return whether the key was given."""
        return key in self._items

    def get(self, key: str) -> Setting | None:
        """Return a value; None if it was not given.

        Raises: ConfigurationError if it is a table.
        """
        item = self._items.get(key)
        if isinstance(item, Setting) or item is None:
            return item
        raise ConfigurationError(f"{_where(item)}: {key} must be a value, not a table; write {key} = …")

    def table(self, key: str, example: str) -> Table:
        """Return a table; an empty one if it was not given."""
        item = self._items.get(key)
        if item is None:
            return Table({}, key=_join(self.key, key), origin=lambda dotted: dotted)
        if isinstance(item, Table):
            return item
        if isinstance(item, Setting):
            raise item.error(f"{key} must be a table, not a value; write {example}")
        raise ConfigurationError(f"{item[0].where}: only [[gpu]] and [[ollama]] can be given more than once; write {example}")

    def tables(self, key: str, example: str) -> dict[str, Table]:
        """Return the tables in a table, by name."""
        parent = self.table(key, example)
        found = {name: parent.table(name, example) for name in parent._items}
        if any(not name.strip() for name in found):
            raise parent.error(f"a name cannot be empty; write {example}")
        return found

    def sequence(self, key: str, example: str) -> list[Table]:
        """Return the table of [key], or those of several [[key]]."""
        item = self._items.get(key)
        if isinstance(item, list):
            return item
        if isinstance(item, Setting) and item.value == []:
            return []
        return [] if item is None else [self.table(key, example)]

    def text(self, key: str, default: str, *, example: str) -> str:
        """Read a non-empty string."""
        return self._read(key, default, lambda setting: _text(setting, example))

    def texts(self, key: str, *, example: str) -> tuple[str, ...]:
        """Read a list of strings; empty if it was not given."""
        setting = self.get(key)
        if setting is None:
            return ()
        value = setting.value
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(is_name(item) for item in value):
            raise setting.error(f"must be a list of strings that are not empty; write {key} = {example}")
        return tuple(value)

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """Read one of the `choices`."""

        def read(setting: Setting) -> str:
            if not isinstance(setting.value, str) or setting.value not in choices:
                near = did_you_mean(setting.value, choices) if isinstance(setting.value, str) else ""
                raise setting.error(f"must be one of {_quoted(choices)}{near}")
            return str(setting.value)

        return self._read(key, default, read)

    def flag(self, key: str, default: bool) -> bool:
        """Read true or false."""

        def read(setting: Setting) -> bool:
            value = {"true": True, "false": False}.get(setting.value) if setting.is_text else setting.value
            if not isinstance(value, bool):
                raise _not_of_kind(setting, "true or false", key=key, right="true")
            return value

        return self._read(key, default, read)

    def integer(
        self, key: str, default: T, *, minimum: int | None = None, maximum: int = HIGHEST_COUNT, advice: str = ""
    ) -> int | T:
        """Read an integer from `minimum` to `maximum`."""

        def read(setting: Setting) -> int:
            value = setting.value
            if setting.is_text and len(value) < LONGEST_NUMBER and value.removeprefix("-").isdecimal():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool):
                raise _not_of_kind(setting, "an integer", key=key, right=f"{max(minimum or 0, 1)}")
            if minimum is not None and value < minimum:
                raise setting.error(f"must be at least {minimum}{advice and '; ' + advice}")
            if value > maximum:
                raise setting.error(f"must be at most {maximum}")
            return value

        return self._read(key, default, read)

    def number(self, key: str, default: T, *, minimum: float | None = None, maximum: float | None = None) -> float | T:
        """Read a finite number from `minimum` to `maximum`."""

        def read(setting: Setting) -> float:
            value = setting.value
            if setting.is_text:
                with suppress(ValueError):
                    value = float(value)
            if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
                raise _not_of_kind(setting, "a number", key=key, right=f"{1 if minimum is None else minimum:g}")
            if minimum is not None and value < minimum:
                raise setting.error(f"must be at least {minimum:g}")
            if maximum is not None and value > maximum:
                raise setting.error(f"must be at most {maximum:g}")
            return float(value)

        return self._read(key, default, read)

    def size(self, key: str, default: int, *, maximum: int = MAX_SIZE_BYTES) -> int:
        """Read an amount of memory in bytes."""

        def read(setting: Setting) -> int:
            size = worded(setting, lambda: parse_size(setting.value, what=setting.where))
            if size > maximum:
                raise setting.error(f"must be at most {format_size(maximum)}")
            return size

        return self._read(key, default, read)

    def duration(self, key: str, default: T, *, positive: bool = False) -> float | T:
        """Read a duration in seconds."""

        def read(setting: Setting) -> float:
            seconds = worded(setting, lambda: parse_duration(setting.value, what=setting.where))
            if positive and not seconds:
                raise setting.error("must be greater than 0")
            return seconds

        return self._read(key, default, read)

    def data(self) -> dict[str, Any]:
        """Return the plain values."""
        return {name: _plain(item) for name, item in self._items.items()}

    def _read(self, key: str, default: D, read: Callable[[Setting], T]) -> T | D:
        setting = self.get(key)
        return default if setting is None else read(setting)


def quoted_key(name: str) -> str:
    """Return a name as a TOML key, quoted if necessary."""
    return name if BARE_KEY.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def worded(setting: Setting, read: Callable[[], T]) -> T:
    """Call `read`, and turn its UsageError into a ConfigurationError that names the setting."""
    try:
        return read()
    except UsageError as error:
        message = str(error)
        raise ConfigurationError(message if message.startswith(setting.where) else f"{setting.where}: {message}") from None


def _not_of_kind(setting: Setting, kind: str, *, key: str, right: str) -> ConfigurationError:
    """Return the error that names the expected kind of value, with an example for this value's origin."""
    if setting.is_text:
        return setting.error(f"must be {kind}; write {setting.where.rpartition(' ')[2]}={right}")
    return setting.error(f"must be {kind}, without quotes; write {key} = {right}")


def _text(setting: Setting, example: str) -> str:
    if not isinstance(setting.value, str | Path) or not str(setting.value).strip():
        raise setting.error(f"must be a non-empty string; write {example}")
    return str(setting.value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _where(item: Setting | Table | list[Table]) -> str:
    return item.where if isinstance(item, Setting | Table) else item[0].where


def _plain(item: Setting | Table | list[Table]) -> Any:
    if isinstance(item, Setting):
        return item.value
    return item.data() if isinstance(item, Table) else [table.data() for table in item]


def _join(key: str, name: str) -> str:
    name = quoted_key(name)
    return f"{key}.{name}" if key else name


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _show(value: Any) -> str:
    """Format a value as in the file, as far as JSON can, and cut it."""
    if isinstance(value, list | str | int | float):
        with suppress(ValueError, RecursionError):  # an integer of thousands of digits, lists in lists
            return cut(json.dumps(value, ensure_ascii=False, default=safe_repr), LONGEST_REPR)
    return safe_repr(value)
