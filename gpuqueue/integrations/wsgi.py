"""Serves a job's events from a plain WSGI application; imports no framework.

To run a worker in the application's own processes, call `gpuqueue.integrations.in_process.InProcessWorker(gq).start()` where the
application is created.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpuqueue.client.handle import JobHandle
from gpuqueue.integrations import sse

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


def send_events(
    job: JobHandle, environ: Mapping[str, Any], start_response: StartResponse, *, timeout_s: float | None = None
) -> Iterable[bytes]:
    """Answer a request with the events of a job, for a browser's EventSource, until the job ends or the client leaves.

    See `gpuqueue.integrations.sse`. The response occupies a thread of the server while it lasts; `timeout_s` ends it, and the
    browser reconnects for the rest. A client that left is noticed at the next write, within 15 s.
    """
    after = environ.get("HTTP_LAST_EVENT_ID")
    if sse.heard_the_end(after):
        start_response("204 No Content", [])
        return []
    start_response("200 OK", list(sse.HEADERS.items()))
    return sse.stream(job, after=after, timeout_s=timeout_s)
