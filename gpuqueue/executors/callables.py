"""Owns running a registered function in the calling thread; a thread cannot be killed, so it never tries to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpuqueue.executors import AttemptContext


class CallableExecutor:
    """Calls the function with the job's arguments by name; what it returns is the job's result."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def run(self, context: AttemptContext) -> Any:
        return self._function(**context.lease.arguments)
