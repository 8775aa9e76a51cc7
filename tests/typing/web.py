"""Uses gpuqueue in Flask, FastAPI, plain ASGI and plain WSGI as an application would; a test checks these types."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, assert_type

from fastapi import Depends, FastAPI, Request
from flask import Flask
from flask import Response as FlaskResponse
from starlette.applications import Starlette
from starlette.responses import Response

from gpuqueue import GPUQueue, JobHandle
from gpuqueue.integrations import asgi, sse, wsgi
from gpuqueue.integrations.fastapi import current_queue, event_response, lifespan, requested_job
from gpuqueue.integrations.flask import FlaskGPUQueue

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

# --- Flask ---

queue = FlaskGPUQueue(plugins={"mine": object()})
at_once = FlaskGPUQueue(Flask(__name__))


@queue.task
def add(a: int, b: int = 2) -> int:
    return a + b


@queue.task(queue="mail", max_attempts=5, timeout="30s")
async def fetch(url: str) -> dict[str, int]:
    return {url: 200}


def create_app() -> Flask:
    app = Flask(__name__)
    queue.init_app(app)

    @app.get("/jobs/<int:job_id>/events")
    def events(job_id: int) -> FlaskResponse:
        return queue.events(job_id, timeout_s=30)

    assert_type(queue.get(app), GPUQueue)
    return app


assert_type(queue.get(), GPUQueue)
assert_type(add(1, b=3), int)
assert_type(add.enqueue(a=1), JobHandle)
assert_type(add.using(delay="5m", priority=3).enqueue(a=1, b=2), JobHandle)
answering: Coroutine[Any, Any, dict[str, int]] = fetch("http://127.0.0.1")


async def enqueue() -> JobHandle:
    return await fetch.aenqueue(url="http://127.0.0.1")


# --- FastAPI and Starlette ---

gq = GPUQueue("application.db")


@asynccontextmanager
async def own(app: object) -> AsyncIterator[Mapping[str, Any]]:
    yield {"pool": object()}


api = FastAPI(lifespan=lifespan(gq, worker=True, inner=own))
starlette = Starlette(lifespan=lifespan(gq, worker={"threads": 2}))


@api.get("/jobs/{job_id}/events")
async def follow(job: Annotated[JobHandle, Depends(requested_job)], request: Request) -> Response:
    return event_response(job, request, timeout_s=600)


@api.get("/counts")
async def counts(found: Annotated[GPUQueue, Depends(current_queue)]) -> dict[str, dict[str, int]]:
    return await found.acounts()


# --- plain ASGI and plain WSGI ---


async def plain(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
    await asgi.send_events(gq.job(1), scope, receive, send, timeout_s=60)


wrapped = asgi.LifespanMiddleware(plain, gq, worker=True)


def plain_wsgi(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    return wsgi.send_events(gq.job(1), environ, start_response)


def all_of(job: JobHandle, last_id: str | None) -> bytes:
    headers: Mapping[str, str] = sse.HEADERS
    assert headers and not sse.heard_the_end(last_id)
    return b"".join(sse.stream(job, after=last_id, timeout_s=5))


async def all_of_async(job: JobHandle) -> list[bytes]:
    return [event async for event in sse.astream(job)]
