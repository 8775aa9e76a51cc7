"""Checks that a Django task's arguments fit its function and are JSON, and names them; stores nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from gpuqueue.domain.errors import did_you_mean
from gpuqueue.integrations.django.tasks_api import normalize_json

__all__ = ["named_arguments", "stored_arguments"]


def stored_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as a job stores them.

    Raises: TypeError if the task does not take them; TypeError or ValueError if they are not JSON.
    """
    takes = _taken(task.func, task.takes_context)
    if takes is not None:
        try:
            takes.bind(*args, **kwargs)
        except TypeError as error:
            names = [name for name, one in takes.parameters.items() if one.kind in BY_NAME]
            wrong = next((name for name in kwargs if name not in names), None)
            near = "" if wrong is None else did_you_mean(wrong, names)
            shown = takes.replace(return_annotation=inspect.Signature.empty) if takes.parameters else "no arguments"
            raise TypeError(f"{task.module_path}: {error}{near}. It takes {shown}") from None
    return {
        "args": [_as_json(task, f"argument {position}", value) for position, value in enumerate(args, 1)],
        "kwargs": {name: _as_json(task, f"argument {name!r}", value) for name, value in kwargs.items()},
    }


def named_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, partly: bool = False) -> dict[str, Any]:
    """Return the arguments of a call by name, with defaults for those not given, unless `partly`. Raises: TypeError."""
    takes = _taken(task.func, task.takes_context)
    if takes is None:
        return dict(kwargs)
    call = takes.bind_partial(*args, **kwargs) if partly else takes.bind(*args, **kwargs)
    if not partly:
        call.apply_defaults()
    named = dict(call.arguments)
    for parameter in takes.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named.update(named.pop(parameter.name, {}))
    return named


BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@cache
def _taken(function: Callable[..., Any], takes_context: bool) -> inspect.Signature | None:
    """Return the parameters of a call: all except the context; None if they cannot be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    return signature.replace(parameters=list(signature.parameters.values())[1 if takes_context else 0 :])


def _as_json(task: Any, what: str, value: Any) -> Any:
    try:
        return normalize_json(value)
    except RecursionError:
        raise ValueError(f"{task.module_path}: {what} is nested too deeply to be stored") from None
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{task.module_path}: {what} is not JSON: {error}") from None
