"""Owns the arguments of a Django task as they are stored: that they fit its function, and are JSON; stores nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from gpuqueue.errors import did_you_mean
from gpuqueue.integrations.django.tasks_api import normalize_json

__all__ = ["stored_arguments"]


def stored_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job keeps. Raises: TypeError for arguments that the task does not take, or that are not JSON."""
    signature = _signature(task.func)
    if signature is not None:
        try:
            signature.bind(*([None] if task.takes_context else []), *args, **kwargs)
        except TypeError as error:
            names = [name for name, one in signature.parameters.items() if one.kind in BY_NAME]
            wrong = next((name for name in kwargs if name not in names), None)
            near = "" if wrong is None else did_you_mean(wrong, names)
            raise TypeError(f"{task.module_path}: {error}{near}. It takes {_taken(signature, task.takes_context)}") from None
    return {
        "args": [_as_json(task, f"argument {position}", value) for position, value in enumerate(args, 1)],
        "kwargs": {name: _as_json(task, f"argument {name!r}", value) for name, value in kwargs.items()},
    }


BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # it cannot be read
        return None


def _taken(signature: inspect.Signature, takes_context: bool) -> str:
    parameters = list(signature.parameters.values())[1 if takes_context else 0 :]
    shown = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return str(shown) if parameters else "none"


def _as_json(task: Any, what: str, value: Any) -> Any:
    try:
        return normalize_json(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{task.module_path}: {what} is not JSON: {error}") from None
