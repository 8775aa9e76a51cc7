"""Makes the mappings of a frozen object as unchangeable as the object itself."""

from __future__ import annotations

from types import MappingProxyType


def freeze(holder: object, *names: str) -> None:
    """Make the named mappings of a frozen dataclass read-only; for its `__post_init__`."""
    for name in names:
        value = getattr(holder, name)
        if not isinstance(value, MappingProxyType):  # as it is in a copy that `replace` makes
            object.__setattr__(holder, name, MappingProxyType(value))
