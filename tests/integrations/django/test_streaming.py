"""A job's events as a response of Django's: under WSGI by a plain iterator, under ASGI by an asynchronous one."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404
from django.test import RequestFactory

from gpuqueue import Worker
from gpuqueue.integrations.django import DjangoQueue, job_of, sse_response
from tests.integrations.django import tasks


def asgi_request(**headers: str) -> ASGIRequest:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": named}
    return ASGIRequest(scope, BytesIO())


def test_under_wsgi_a_plain_iterator_tells_the_story(own_file: DjangoQueue) -> None:
    result = tasks.add.enqueue(1, b=2)
    with Worker(own_file):
        response = sse_response(RequestFactory().get("/"), result)
        assert response.headers["Content-Type"] == "text/event-stream"
        assert not response.is_async
        told = b"".join(response)
    assert b'event: done\nid: end\ndata: {"result": 3}' in told


def test_under_asgi_an_asynchronous_one_does(own_file: DjangoQueue) -> None:
    result = tasks.add.enqueue(1, b=2)

    async def view() -> bytes:
        response = sse_response(asgi_request(), job_of(result))
        assert response.is_async
        return b"".join([part async for part in response])

    with Worker(own_file):
        assert b"event: done" in asyncio.run(view())


@pytest.mark.parametrize("make", [lambda **headers: RequestFactory().get("/", headers=headers), asgi_request])
def test_a_browser_that_has_heard_the_end_is_sent_away(own_file: DjangoQueue, make: Any) -> None:
    response = sse_response(make(last_event_id="end"), tasks.add.enqueue(1))
    assert response.status_code == 204


@pytest.mark.parametrize("make", [RequestFactory().get, lambda path: asgi_request()])
def test_a_job_is_found_by_its_id_and_one_that_is_not_there_is_a_404(own_file: DjangoQueue, make: Any) -> None:
    job = job_of(tasks.add.enqueue(1))
    assert sse_response(make("/"), job.id).status_code == 200
    assert sse_response(make("/"), job.id, using="default").status_code == 200
    with pytest.raises(Http404, match="unknown job 77"):
        sse_response(make("/"), 77)
