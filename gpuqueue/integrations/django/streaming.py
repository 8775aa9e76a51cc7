"""Owns a job's story as a streaming response of Django's, under WSGI and ASGI; what is told is `gpuqueue.integrations.sse`'s."""

from __future__ import annotations

from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from gpuqueue.handle import JobHandle
from gpuqueue.integrations import sse
from gpuqueue.integrations.django.queues import job_of

__all__ = ["sse_response"]


def sse_response(request: HttpRequest, job: JobHandle | Any, *, timeout_s: float | None = None) -> Any:
    """Stream a job's state and output as server-sent events, to a browser's EventSource.

    `job` is a job, or a task's result. A browser that comes back goes on where it was. Under ASGI it waits without a thread;
    under WSGI it takes the request's thread until the job has ended or `timeout_s` is over. The view may be async or not.
    """
    handle = job if isinstance(job, JobHandle) else job_of(job)
    after = request.headers.get("Last-Event-ID")
    if sse.heard_the_end(after):
        return HttpResponse(status=204)  # which makes the browser stop
    tell = sse.astream if isinstance(request, ASGIRequest) else sse.stream
    return StreamingHttpResponse(tell(handle, after=after, timeout_s=timeout_s), headers=dict(sse.HEADERS))
