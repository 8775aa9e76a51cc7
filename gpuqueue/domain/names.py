"""Says which text can name something in the file; knows no name."""

from __future__ import annotations

from typing import TypeGuard


def is_name(value: object) -> TypeGuard[str]:
    """Return whether this is text, not only blanks, that UTF-8 and so the file can hold."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True
