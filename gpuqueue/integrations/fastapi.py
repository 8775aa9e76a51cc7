"""Integrates with FastAPI and Starlette: a lifespan, the queue object as a dependency, a job's events as a response.

Needs only Starlette, which FastAPI installs.
"""

from __future__ import annotations

from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import UnknownJob, UsageError
from gpuqueue.integrations import sse
from gpuqueue.integrations.asgi import lifespan

__all__ = ["current_queue", "event_response", "lifespan", "requested_job"]


async def current_queue(connection: HTTPConnection) -> GPUQueue:
    """Return the queue object of the application's `lifespan`: `gq: Annotated[GPUQueue, Depends(current_queue)]`.

    Works in a mounted application too, if the root application has that lifespan. Raises: UsageError.
    """
    gq = getattr(connection.state, "gpuqueue", None)
    if gq is None:
        raise UsageError(
            "this application has no gpuqueue. Pass lifespan=lifespan(gq) to FastAPI or Starlette; for a mounted application, "
            "to the root application, because only its lifespan is run"
        )
    return cast(GPUQueue, gq)


async def requested_job(job_id: int, connection: HTTPConnection) -> JobHandle:
    """Find the job that a path with `{job_id}` names: `job: Annotated[JobHandle, Depends(requested_job)]`, or answer 404.

    Ids are consecutive numbers: the application must check whether this visitor may see this job.
    """
    try:
        return await (await current_queue(connection)).ajob(job_id)
    except UnknownJob as error:
        raise HTTPException(404, str(error)) from None


def event_response(job: JobHandle, connection: HTTPConnection, *, timeout_s: float | None = None) -> Response:
    """Answer a request with the events of a job, for a browser's EventSource: see `gpuqueue.integrations.sse`.

    It occupies no thread, and ends when the client leaves. A server that shuts down waits for its open responses: start uvicorn
    with `--timeout-graceful-shutdown 3`.
    """
    after = connection.headers.get("last-event-id")
    if sse.heard_the_end(after):
        return Response(status_code=204)
    return _EventResponse(job, after, timeout_s)


class _EventResponse(StreamingResponse):
    """Closes the events when the client leaves, not only when Python collects them."""

    def __init__(self, job: JobHandle, after: str | None, timeout_s: float | None) -> None:
        self._events = sse.astream(job, after=after, timeout_s=timeout_s)
        super().__init__(self._events, headers=dict(sse.HEADERS))

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await self._events.aclose()
