"""Owns running a Django task in a worker: its context, its signals and Django's connections; claims and writes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from django.db import close_old_connections

from gpuqueue.integrations.django.results import import_task
from gpuqueue.integrations.django.tasks_api import normalize_json


def runner(alias: str, path: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Make the function that a worker calls with a job's arguments; asynchronous where the task is."""
    if inspect.iscoroutinefunction(function):

        async def arun(**arguments: Any) -> Any:
            task = import_task(path)
            return normalize_json(await task.func(*arguments.get("args", ()), **arguments.get("kwargs", {})))

        return arun

    def run(**arguments: Any) -> Any:
        return _run(alias, path, arguments)

    return run


def _run(alias: str, path: str, arguments: Mapping[str, Any]) -> Any:
    close_old_connections()
    try:
        task = import_task(path)
        return normalize_json(task.func(*arguments.get("args", ()), **arguments.get("kwargs", {})))
    finally:
        close_old_connections()
