"""Streams a job's state and output as a Django response, under WSGI and ASGI; `gpuqueue.integrations.sse` makes the events."""

from __future__ import annotations

from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse

from gpuqueue.client.handle import JobHandle
from gpuqueue.domain.errors import UnknownJob
from gpuqueue.integrations import sse
from gpuqueue.integrations.django.lookup import job_of, queue
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS

__all__ = ["sse_response"]


def sse_response(
    request: HttpRequest, job: JobHandle | int | Any, *, using: str = DEFAULT_ALIAS, timeout_s: float | None = None
) -> Any:
    """Stream a job's state and output as server-sent events, to a browser's EventSource.

    `job` is a job, a task's result, or a job's id in the queue of the entry `using` of TASKS: ids are consecutive numbers, and
    the view must check whether this visitor may see that job. A browser that reconnects continues where it was. Under ASGI it
    waits without a thread; under WSGI it occupies the request's thread until the job has ended or `timeout_s` has passed. The
    view may be sync or async. Raises: Http404 for an unknown id.
    """
    after = request.headers.get("Last-Event-ID")
    if sse.heard_the_end(after):
        return HttpResponse(status=204)  # which makes the browser stop
    handle = _found(job, using) if isinstance(job, int) else job if isinstance(job, JobHandle) else job_of(job)
    tell = sse.astream if isinstance(request, ASGIRequest) else sse.stream
    return StreamingHttpResponse(tell(handle, after=after, timeout_s=timeout_s), headers=dict(sse.HEADERS))


def _found(job_id: int, alias: str) -> JobHandle:
    try:
        return queue(alias).job(job_id)
    except UnknownJob as error:
        raise Http404(str(error)) from None
