"""Reads the options of a queue that code creates or changes, with the reader of [queues.NAME]; checks no value itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import Any

from gpuqueue.config.sections import NO_BACKEND, read_queue
from gpuqueue.config.table import Setting, Table
from gpuqueue.domain.errors import ConfigurationError, UsageError, did_you_mean
from gpuqueue.domain.names import is_name
from gpuqueue.domain.rates import parse_rate
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, QueueSettings, Rate, WindowRule
from gpuqueue.domain.units import parse_duration

SECONDS = "_s"
# An option in code is named with its unit, and as text in the file: {option: key}.
_KEYS = {field.name: field.name.removesuffix(SECONDS) for field in fields(QueueSettings) if field.name != "name"}
_OPTIONS = {key: option for option, key in _KEYS.items()}
_MAY_BE_NONE = frozenset({"concurrency", "rate", "max_attempts", "timeout_s", "priority", "max_preemptions", "protect_s"})


def read_queue_options(
    name: str,
    given: Mapping[str, Any],
    before: QueueSettings | None,
    *,
    devices: Sequence[DeviceSettings],
    backends: Sequence[BackendSettings],
) -> QueueSettings:
    """Return the queue's settings: those `before`, if it exists, with the given ones, which are named as their fields.

    Raises: ConfigurationError naming the queue and the option.
    """
    if not is_name(name):
        raise ConfigurationError(f"a queue's name must be a non-empty string, not {safe_repr(name)}")
    values: dict[str, Any] = {} if before is None else {option: getattr(before, option) for option in _KEYS}
    if values:
        values["backend"] = values["backend"] or NO_BACKEND
    for option, value in given.items():
        if option not in _KEYS:
            raise ConfigurationError(
                f"queue {name!r}: unknown option {option!r}{did_you_mean(option, _KEYS)}. Options: {', '.join(_KEYS)}"
            )
        values[option] = _as_in_file(Setting(value, _where(name, option)), option)

    def origin(dotted: str) -> str:
        if not dotted:
            return f"queue {name!r}"
        key, dot, rest = dotted.partition("[")
        return _where(name, f"{_OPTIONS.get(key, key)}{dot}{rest}")

    known = {_KEYS[option]: value for option, value in values.items() if not (value is None and option in _MAY_BE_NONE)}
    known["windows"] = [_rule(item) for item in known.get("windows", ())]
    if not known["windows"]:
        del known["windows"]
    table = Table(known, key="", origin=origin)
    names = [item.name for item in backends]
    made = read_queue(name, table, has_device=bool(devices), backends=names, has_ollama=bool(names))
    if made.backend and not names:  # the file would have configured it by naming it
        raise ConfigurationError(f"{_where(name, 'backend')} is {made.backend!r}: no Ollama is configured; add [ollama]")
    return made


def _where(name: str, option: str) -> str:
    return f"queue {name!r}: {option}"


def _as_in_file(setting: Setting, option: str) -> Any:
    """Return a value as the reader takes it. Raises: ConfigurationError for one of another type than the option's."""
    value = setting.value
    if option.endswith(SECONDS) and isinstance(value, str):
        seconds = 300.0
        with suppress(UsageError):
            seconds = parse_duration(value, what=option)
        raise setting.error(f"must be a number of seconds; write {option}={seconds:g}")
    if option == "rate" and value is not None and not isinstance(value, Rate):
        right = Rate(10, 60.0)
        with suppress(UsageError):
            right = parse_rate(value)
        raise setting.error(f"must be a Rate; write rate={right!r}")
    if option == "windows" and not (
        isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(item, WindowRule) for item in value)
    ):
        raise setting.error('must be a list of WindowRule; write windows=[WindowRule("18:00-09:00", concurrency=1)]')
    return value


def _rule(rule: WindowRule) -> dict[str, Any]:
    return {key: value for key in ("at", "concurrency", "rate") if (value := getattr(rule, key)) is not None}
