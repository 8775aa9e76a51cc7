"""Makes async twins of blocking methods: the same call in a thread, without logic of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


async def in_thread(call: Callable[Parameters, Returned], /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
    """Run a blocking call in a thread. When cancelled, the call still ends there."""
    import asyncio  # takes 25 ms, which callers that only block do not pay

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
