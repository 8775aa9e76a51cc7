"""Supports for one more version plugins that expect a mapping or a click group where a hook now gets a details object.

Delete it in the next version, with the line in `plugin_set.py` that calls it and `tests/contract/test_old_form.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from gpuqueue.contract import details as new

logger = logging.getLogger("gpuqueue.plugins")


def with_old_form(details: Any, plugin: str, hook: str) -> Any:
    """Return the details for a plugin; in some hooks they can also be read in the old form, which logs a warning once."""
    kind = _KINDS.get(type(details))
    if kind is None:
        return details
    names = [field.name for field in fields(details)]
    made = kind(*(getattr(details, name) for name in names))
    has = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    warned = False

    def warn(old: str, name: str) -> None:
        nonlocal warned
        if not warned:
            warned = True
            logger.warning(
                "plugin %r uses %s in %s, but details is now an object with %s; write %s. "
                "The old form stops working in the next version of gpuqueue",
                plugin,
                old,
                hook,
                has,
                f"details.{name}",
            )

    object.__setattr__(made, "_warn", warn)
    return made


class _OldMapping(Mapping[str, Any]):
    """Mixin: reads the fields of a class as the keys of a mapping."""

    __slots__ = ()
    __dataclass_fields__: dict[str, Any]
    _warn: Callable[[str, str], None]

    def __getitem__(self, key: str) -> Any:
        if key not in self.__dataclass_fields__:
            raise KeyError(key)
        self._warn(f"details[{key!r}]", key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        self._warn("details as a mapping", next(iter(self.__dataclass_fields__)))
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)


class RegisterExecutorsDetails(new.RegisterExecutorsDetails, _OldMapping):
    __slots__ = ("_warn",)


class RegisterDevicesDetails(new.RegisterDevicesDetails, _OldMapping):
    __slots__ = ("_warn",)


class RegisterCommandsDetails(new.RegisterCommandsDetails):
    """Forwards the methods of its click group."""

    __slots__ = ("_warn",)

    _warn: Callable[[str, str], None]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self.cli, name)
        self._warn(f"details.{name}", f"cli.{name}")
        return found


_KINDS = {kind.__bases__[0]: kind for kind in (RegisterExecutorsDetails, RegisterDevicesDetails, RegisterCommandsDetails)}
