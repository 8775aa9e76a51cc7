"""Makes text of what other code hands over: complete, bounded, and without characters that cannot be stored; never raises.

Objects of tasks and plugins cannot be trusted to have a working `__str__`.
"""

from __future__ import annotations

import traceback

LONGEST_MESSAGE = 4000
LONGEST_TRACE = 8000
LONGEST_REPR = 200


def safe_text(value: object, limit: int = LONGEST_MESSAGE) -> str:
    """Return a value's text, at most `limit` characters of it; says so if its `__str__` fails."""
    try:
        text = _characters(str(value))
    except BaseException as error:
        text = f"<{class_name(value)}: its __str__ raised {class_name(error)}>"
    return clean(cut(text, limit))


def safe_repr(value: object, limit: int = LONGEST_REPR) -> str:
    """Return a value's `repr`, at most `limit` characters of it; says so if its `__repr__` fails."""
    try:
        text = _characters(repr(value))
    except BaseException as error:
        text = f"<{class_name(value)}: its __repr__ raised {class_name(error)}>"
    return clean(cut(text, limit))


def class_name(value: object) -> str:
    """Return the name of a value's class."""
    try:
        return clean(type(value).__name__)
    except BaseException:  # a metaclass may compute the name
        return "object"


def clean(text: str) -> str:
    """Escape halves of surrogate pairs as JSON does (`\\ud83d`): neither SQLite nor a UTF-8 stream takes them."""
    text = _characters(text)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _characters(text: str) -> str:
    """Return the plain string of a subclass of str, which may have methods of its own."""
    return str.__str__(text)


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters: a text, or its beginning and how long it was."""
    note = f"… ({len(text):,} characters)"
    return text if len(text) <= limit else f"{text[: limit - len(note)]}{note}"


def safe_trace(error: BaseException) -> str:
    """Return an error's traceback; of a long one the first frames and the last lines."""
    try:
        text = "".join(traceback.format_exception(error))
    except BaseException as failed:  # for example an attribute of the error that raises
        text = f"<no traceback: formatting it raised {class_name(failed)}>\n"
    if len(text) > LONGEST_TRACE:
        half = LONGEST_TRACE // 2
        text = f"{text[:half]}\n… ({len(text):,} characters)\n{text[-half:]}"
    return clean(text)


def forget_frames(error: BaseException | None) -> None:
    """Release the frames of an error and of its causes, and with them what the task held: it may be memory of a device."""
    left, seen = [error], set[int]()
    while left:
        at = left.pop()
        if not isinstance(at, BaseException) or id(at) in seen:
            continue
        seen.add(id(at))
        at.__traceback__ = None  # the frames are not cleared: one may be of a coroutine that caught a shared error and goes on
        left += [at.__cause__, at.__context__]
        if isinstance(at, BaseExceptionGroup):
            left += at.exceptions
