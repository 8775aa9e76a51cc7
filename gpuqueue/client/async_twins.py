"""Owns the awaitable variants of blocking methods: the same call in a thread; a variant has no logic of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


async def in_thread(call: Callable[Parameters, Returned], /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
    """Run a blocking call in a thread. Cancelled, it lets the call end there."""
    import asyncio  # 25 ms, which a caller that only blocks does not pay

    return await asyncio.to_thread(call, *args, **kwargs)


def twin(
    method: Callable[Concatenate[Owner, Parameters], Returned],
) -> Callable[Concatenate[Owner, Parameters], Coroutine[Any, Any, Returned]]:
    """Make the async twin of a method: `aenqueue = twin(enqueue)`."""

    @functools.wraps(method)
    async def call(self: Owner, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        return await in_thread(method, self, *args, **kwargs)

    call.__name__ = f"a{method.__name__}"
    call.__qualname__ = call.__qualname__.removesuffix(method.__name__) + call.__name__
    call.__doc__ = f"The async twin of `{method.__name__}`."
    return call
