"""Runs a registered function in the calling thread or on the event loop; neither can be killed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gpuqueue.contract.executor import AttemptContext


class CallableExecutor:
    """Calls the function with the job's arguments by name and returns its result."""

    def __init__(self, function: Callable[..., Any], *, preemptible: bool = False) -> None:
        self._function = function
        self.preemptible = preemptible

    def run(self, context: AttemptContext) -> Any:
        return self._function(**context.lease.arguments)


class CoroutineExecutor:
    """Awaits an asynchronous function the same way; a cancel, a deadline or a shutdown raises CancelledError in it."""

    def __init__(self, function: Callable[..., Awaitable[Any]], *, preemptible: bool = False) -> None:
        self._function = function
        self.preemptible = preemptible

    async def arun(self, context: AttemptContext) -> Any:
        return await self._function(**context.lease.arguments)
