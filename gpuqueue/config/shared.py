"""Converts the settings that all workers of one database share to plain data and back, and compares them.

A worker writes them into the database when it starts; the next one compares its own with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar

from gpuqueue.domain.settings import (
    BackendSettings,
    DeviceSettings,
    ModelSettings,
    PlacementMode,
    QueueSettings,
    Rate,
    WindowRule,
)
from gpuqueue.domain.units import format_duration, format_size

__all__ = ["SharedSettings", "agreed", "settings_difference", "settings_digest", "settings_from_shared", "shared_settings"]

Named = TypeVar("Named", QueueSettings, DeviceSettings, ModelSettings, BackendSettings)


class HasSettings(Protocol):
    """Anything with these settings: a Config or a SharedSettings."""

    @property
    def queues(self) -> Mapping[str, QueueSettings]: ...
    @property
    def devices(self) -> tuple[DeviceSettings, ...]: ...
    @property
    def models(self) -> Mapping[str, ModelSettings]: ...
    @property
    def backends(self) -> tuple[BackendSettings, ...]: ...
    @property
    def placement(self) -> PlacementMode: ...
    @property
    def plugins_blocked(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class SharedSettings:
    """The settings that all workers of one database must agree on."""

    queues: Mapping[str, QueueSettings]
    devices: tuple[DeviceSettings, ...]
    models: Mapping[str, ModelSettings]
    backends: tuple[BackendSettings, ...]
    placement: PlacementMode = "pack"
    plugins_blocked: tuple[str, ...] = ()


def shared_settings(config: HasSettings) -> dict[str, Any]:
    """Convert the shared settings to JSON-able data: {section: {name: {setting: value}}}."""
    shared: dict[str, Any] = {
        "queues": _plain(config.queues.values()),
        "devices": _plain(config.devices),
        "models": _plain(config.models.values()),
        "backends": _plain(config.backends),
        "scheduling": {"devices": {"placement": config.placement}},
    }
    if config.plugins_blocked:
        shared["plugins"] = {"block": sorted(config.plugins_blocked)}
    return shared


def settings_from_shared(shared: Mapping[str, Any]) -> SharedSettings:
    """Convert the data of `shared_settings` back to settings.

    A setting that this version does not know is dropped; a missing one gets its default.
    """
    return SharedSettings(
        queues={item.name: item for item in _build(QueueSettings, shared.get("queues", {}))},
        devices=tuple(sorted(_build(DeviceSettings, shared.get("devices", {})), key=device_order)),
        models={item.name: item for item in _build(ModelSettings, shared.get("models", {}))},
        backends=tuple(_build(BackendSettings, shared.get("backends", {}))),
        placement=shared.get("scheduling", {}).get("devices", {}).get("placement", "pack"),
        plugins_blocked=tuple(shared.get("plugins", {}).get("block", ())),
    )


def agreed(shared: Mapping[str, Any] | None, own: SharedSettings) -> SharedSettings:
    """Return the settings that the workers agreed on, from the stored data; before the first worker, the process's own."""
    return own if shared is None else settings_from_shared(shared)


def settings_digest(shared: Mapping[str, Any]) -> str:
    """Return a short digest that is equal for equal `shared_settings` data, in any order."""
    import hashlib

    text = json.dumps(shared, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """List the differences between two `shared_settings` data: `queues.ai.concurrency: 1 here, 2 in the database`."""
    return list(_differences("", mine, theirs))


def device_order(device: DeviceSettings) -> tuple[int, str]:
    """Sort key: devices in the machine's order, so that stored and configured ones compare equal."""
    return (device.index, device.name)


def _plain(items: Iterable[Named]) -> dict[str, dict[str, Any]]:
    return {
        item.name: {field.name: _plain_value(getattr(item, field.name)) for field in fields(item) if field.name != "name"}
        for item in sorted(items, key=lambda item: item.name)
    }


def _plain_value(value: Any) -> Any:
    """Convert a value to what JSON would return: lists for tuples, so that stored and fresh data compare equal."""
    if is_dataclass(value):
        return {field.name: _plain_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value


def _build(kind: type[Named], tables: Mapping[str, Mapping[str, Any]]) -> list[Named]:
    known = {field.name: str(field.type) for field in fields(kind)}
    built = []
    for name, table in tables.items():
        values: dict[str, Any] = {key: value for key, value in table.items() if key in known}
        for key, value in values.items():
            if key == "windows":
                values[key] = tuple(WindowRule(**{**rule, "rate": _rate(rule.get("rate"))}) for rule in value)
            elif key == "rate":
                values[key] = _rate(value)
            elif known[key].startswith("tuple"):
                values[key] = tuple(value)
        built.append(kind(**{**values, "name": name}))
    return built


def _rate(value: Mapping[str, Any] | None) -> Rate | None:
    return None if value is None else Rate(**value)


def _differences(path: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterable[str]:
    for key in sorted({*mine, *theirs}):
        dotted = f"{path}.{key}" if path else key
        if key not in theirs:
            yield f"{dotted}: {_word_presence(key, mine[key])} here, not in the database"
        elif key not in mine:
            yield f"{dotted}: not here, {_word_presence(key, theirs[key])} in the database"
        elif isinstance(mine[key], Mapping) and isinstance(theirs[key], Mapping):
            yield from _differences(dotted, mine[key], theirs[key])
        elif mine[key] != theirs[key]:
            here, there = _word(key, mine[key]), _word(key, theirs[key])
            if here == there:
                here, there = json.dumps(mine[key]), json.dumps(theirs[key])
            yield f"{dotted}: {here} here, {there} in the database"


def _word_presence(key: str, value: Any) -> str:
    return "configured" if isinstance(value, Mapping) else _word(key, value)


def _word(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("_bytes"):
            return format_size(int(value))
        if key.endswith("_s"):
            return format_duration(value)
    return json.dumps(value, ensure_ascii=False)
