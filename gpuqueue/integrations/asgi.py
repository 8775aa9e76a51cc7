"""Serves a job's events from a plain ASGI application, and runs a worker while the application is running.

Imports no framework.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

from gpuqueue.client.async_twins import in_thread
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.integrations import sse

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
AnyLifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


async def send_events(job: JobHandle, scope: Scope, receive: Receive, send: Send, *, timeout_s: float | None = None) -> None:
    """Answer a request with the events of a job, for a browser's EventSource, until the job ends or the client leaves.

    See `gpuqueue.integrations.sse`, also for `timeout_s`. It occupies no thread. A server that shuts down waits for its open
    responses: start uvicorn with `--timeout-graceful-shutdown 3`.
    """
    after = last_event_id(scope)
    if sse.heard_the_end(after):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    headers = [(name.lower().encode(), value.encode()) for name, value in sse.HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    sending = asyncio.ensure_future(_send_all(job, after, timeout_s, send))
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.wait((sending, leaving))
    for task in (sending, leaving):
        # A server may report with an OSError that the client has left.
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
            raise error


def last_event_id(scope: Scope) -> str | None:
    """Return the id of the last event that a reconnecting browser received."""
    found = (value for name, value in scope["headers"] if name.lower() == b"last-event-id")
    value: bytes | None = next(found, None)
    return None if value is None else value.decode("utf-8", "replace")


def lifespan(gq: GPUQueue, *, worker: bool | Mapping[str, Any] = False, inner: AnyLifespan | None = None) -> Lifespan:
    """Make the lifespan of an application that uses a queue; it closes the queue object at the end.

    `worker=True` runs jobs in this process while the application is running, with one worker per host however many processes
    there are; a mapping gives the options of `InProcessWorker`. `inner` is the application's own lifespan: jobs run only while
    the resources it sets up are available. The queue object is added to the lifespan state of `inner` as `gpuqueue`.

    A mounted application's lifespan is never run: pass this one to the root application. An included router's lifespan is run.
    """

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as living:
            living.push_async_callback(in_thread, gq.close)
            state = None if inner is None else await living.enter_async_context(inner(app))
            if worker is not False:
                from gpuqueue.integrations.in_process import InProcessWorker

                running = InProcessWorker(gq, **(worker if isinstance(worker, Mapping) else {}))
                living.push_async_callback(in_thread, running.stop)
                await in_thread(running.start)
            yield {**(state or {}), "gpuqueue": gq}

    return run


class LifespanMiddleware:
    """Wraps an ASGI application that takes no lifespan: runs one around the application's own, if it has one, or alone."""

    def __init__(self, app: Application, gq: GPUQueue, *, worker: bool | Mapping[str, Any] = False) -> None:
        self._app = app
        self._lifespan = lifespan(gq, worker=worker)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        heard = answered = False

        async def hear() -> Message:
            nonlocal heard
            heard = True
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await living.aclose()
            return message

        async def say(message: Message) -> None:
            nonlocal answered
            answered = True
            if message["type"] == "lifespan.startup.complete":
                scope.get("state", {}).update(await living.enter_async_context(self._lifespan(self._app)))
            await send(message)

        async with AsyncExitStack() as living:
            try:
                await self._app(scope, hear, say)
            except Exception:
                if answered:
                    raise
            if not answered:  # it does not support lifespans
                if not heard:
                    await hear()
                await say({"type": "lifespan.startup.complete"})
                await hear()
                await say({"type": "lifespan.shutdown.complete"})


async def _send_all(job: JobHandle, after: str | None, timeout_s: float | None, send: Send) -> None:
    async with aclosing(sse.astream(job, after=after, timeout_s=timeout_s)) as events:
        async for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
