"""Owns gpuqueue in a plain WSGI application: a job's events as the answer to a request; imports no framework.

A worker in the application's own processes is `gpuqueue.integrations.in_process.InProcessWorker(gq).start()`, called where the
application is made.
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

    See `gpuqueue.integrations.sse`. The answer takes a thread of the server for as long as it lasts; `timeout_s` ends it, and
    the browser comes back for the rest. That the client has left is noticed when it is next written to, within 15 s.
    """
    after = environ.get("HTTP_LAST_EVENT_ID")
    if sse.heard_the_end(after):
        start_response("204 No Content", [])
        return []
    start_response("200 OK", list(sse.HEADERS.items()))
    return sse.stream(job, after=after, timeout_s=timeout_s)
