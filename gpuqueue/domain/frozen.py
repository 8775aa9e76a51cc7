"""Makes the mappings of a frozen object read-only."""

from __future__ import annotations

from types import MappingProxyType


def freeze(holder: object, *names: str) -> None:
    """Make the named mappings of a frozen dataclass read-only; for its `__post_init__`."""
    for name in names:
        value = getattr(holder, name)
        if not isinstance(value, MappingProxyType):  # already read-only in a copy made by `replace`
            object.__setattr__(holder, name, MappingProxyType(value))
