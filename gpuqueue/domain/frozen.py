"""Makes the mappings of a frozen object read-only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class FrozenDict(dict[Key, Value]):
    """A dict that cannot be changed; it can be copied, pickled and written as JSON as any other."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("this mapping is read-only; change a copy of it: dict(…)")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[Key, Value]], tuple[dict[Key, Value]]]:
        return type(self), (dict(self),)


def freeze(holder: object, *names: str) -> None:
    """Make the named mappings of a frozen dataclass read-only; for its `__post_init__`."""
    for name in names:
        value: Mapping[Any, Any] = getattr(holder, name)
        if not isinstance(value, FrozenDict):  # already read-only in a copy made by `replace`
            object.__setattr__(holder, name, FrozenDict(value))
