"""A job's events through real servers and real HTTP: tokens of an Ollama as they come, several processes, clients that leave."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from gpuqueue.testing.waiting import DEADLINE_S
from tests.integrations.server_events import text_of
from tests.integrations.servers import listening, serving
from tests.processes import LONGEST_S

FLASK = """
import os
from flask import Flask, request
from gpuqueue.integrations.flask import FlaskGPUQueue

queue = FlaskGPUQueue()


def create_app():
    app = Flask(__name__)
    app.config["GPUQUEUE_CONFIG"] = "gpuqueue.toml"
    queue.init_app(app)

    @app.post("/jobs")
    def revise():
        options = {"num_predict": int(request.args["tokens"])}
        job = queue.get().ollama.generate("gemma4:e4b", prompt="a story", queue="ai-batch", options=options)
        return {"id": job.id, "pid": os.getpid()}

    @app.get("/jobs/<int:job_id>/events")
    def events(job_id):
        return queue.events(job_id)

    return app
"""

WSGI = """
from gpuqueue import GPUQueue
from gpuqueue.integrations.wsgi import send_events

gq = GPUQueue.from_config("gpuqueue.toml")


def create_app():
    def app(environ, start_response):
        if environ["REQUEST_METHOD"] == "POST":
            options = {"num_predict": int(environ["QUERY_STRING"].removeprefix("tokens="))}
            job = gq.ollama.generate("gemma4:e4b", prompt="a story", queue="ai-batch", options=options)
            start_response("200 OK", [("Content-Type", "application/json")])
            return [b'{"id": %d}' % job.id]
        return send_events(gq.job(int(environ["PATH_INFO"].split("/")[2])), environ, start_response)

    return app
"""

FASTAPI = """
from typing import Annotated
from fastapi import Depends, FastAPI, Request
from gpuqueue import GPUQueue, JobHandle
from gpuqueue.integrations.fastapi import current_queue, event_response, lifespan, requested_job

app = FastAPI(lifespan=lifespan(GPUQueue.from_config("gpuqueue.toml")))
mounted = FastAPI()
app.mount("/mounted", mounted)
Queue = Annotated[GPUQueue, Depends(current_queue)]


@app.post("/jobs")
async def revise(gq: Queue, tokens: int):
    options = {"num_predict": tokens}
    job = await gq.ollama.agenerate("gemma4:e4b", prompt="a story", queue="ai-batch", options=options)
    return {"id": job.id}


@app.get("/jobs/{job_id}/events")
@mounted.get("/jobs/{job_id}/events")
async def events(job: Annotated[JobHandle, Depends(requested_job)], request: Request):
    return event_response(job, request)
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from gpuqueue import GPUQueue
from gpuqueue.integrations.fastapi import current_queue, event_response, lifespan, requested_job


async def revise(request):
    gq = await current_queue(request)
    options = {"num_predict": int(request.query_params["tokens"])}
    job = await gq.ollama.agenerate("gemma4:e4b", prompt="a story", queue="ai-batch", options=options)
    return JSONResponse({"id": job.id})


async def events(request):
    return event_response(await requested_job(request.path_params["job_id"], request), request)


app = Starlette(
    routes=[Route("/jobs", revise, methods=["POST"]), Route("/jobs/{job_id:int}/events", events)],
    lifespan=lifespan(GPUQueue.from_config("gpuqueue.toml")),
)
"""

ASGI = """
from gpuqueue import GPUQueue
from gpuqueue.integrations.asgi import LifespanMiddleware, send_events

gq = GPUQueue.from_config("gpuqueue.toml")


async def plain(scope, receive, send):
    assert scope["type"] == "http"
    if scope["method"] == "POST":
        options = {"num_predict": int(scope["query_string"].decode().removeprefix("tokens="))}
        job = await gq.ollama.agenerate("gemma4:e4b", prompt="a story", queue="ai-batch", options=options)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"id": %d}' % job.id})
    else:
        await send_events(await gq.ajob(int(scope["path"].split("/")[2])), scope, receive, send)


app = LifespanMiddleware(plain, gq)
"""

GUNICORN = ("gunicorn", "shop:create_app()", "--no-control-socket", "--bind", "127.0.0.1:0", "--threads", "8")
UVICORN = ("uvicorn", "shop:app", "--host", "127.0.0.1", "--lifespan", "on", "--port")
SERVERS = {
    "flask run": (FLASK, ("flask", "--app", "shop", "run", "--port", "0")),
    "gunicorn, threads": (FLASK, GUNICORN),
    "gunicorn, processes": (FLASK, (*GUNICORN, "--workers", "2")),
    "gunicorn, plain WSGI": (WSGI, GUNICORN),
    "uvicorn, FastAPI": (FASTAPI, (*UVICORN, "0")),
    "uvicorn, processes": (FASTAPI, (*UVICORN, "PORT", "--workers", "2")),
    "uvicorn, Starlette": (STARLETTE, (*UVICORN, "0")),
    "uvicorn, plain ASGI": (ASGI, (*UVICORN, "0")),
}


@pytest.fixture(params=SERVERS)
def server(request, ai, tmp_path):
    """The address of a server whose application has the queue of the scenario."""
    source, command = SERVERS[request.param]
    (tmp_path / "shop.py").write_text(source)
    with serving(*command, folder=tmp_path) as address:
        yield address


def submit(server: str, tokens: int) -> str:
    """Make a job over HTTP and return the address of its events."""
    answer = httpx.post(f"{server}/jobs?tokens={tokens}", timeout=DEADLINE_S).raise_for_status()
    return f"{server}/jobs/{answer.json()['id']}/events"


def waiters(gq):
    return list((gq.store.runtime_dir / "waiters").iterdir())


def leave(server, ai, until):
    address = submit(server, 5)
    with listening(address) as events:
        assert next(events).name == "state"
        assert len(waiters(ai.gq)) == 1

    def is_gone() -> bool:
        # A server notices when it writes, so there is something to write: another place in the queue.
        ai.batch(job={"priority": 5})
        return not waiters(ai.gq)

    until(is_gone, "the listener of a client that has left")
    ai.gq.cancel_all("ai-batch")


def see_why_a_job_waits_and_then_its_tokens_through_a_broken_connection(server, ai, start_worker):
    ai.ollama.faults.add("stall", after_tokens=10)
    address = submit(server, 30)
    clients = 4
    together = threading.Barrier(clients + 1)

    def read(number: int) -> str:
        told = []
        with listening(address) as events:
            told.append(next(events))
            assert told[0].data["reasons"][0]["reason"] == "no_worker"
            together.wait(DEADLINE_S)
            for event in events:
                told.append(event)
                if event.name == "piece" and not any(earlier.name == "piece" for earlier in told[:-1]):
                    together.wait(DEADLINE_S)
                    if number == 0:
                        break  # its connection breaks here
        if number == 0:
            with listening(address, told[-1].last_id) as events:
                told += events
        assert told[-1].name == "done"
        assert text_of(told) == told[-1].data["result"]["text"]
        return text_of(told)

    with ThreadPoolExecutor(clients) as pool:
        reading = [pool.submit(read, number) for number in range(clients)]
        together.wait(DEADLINE_S)
        start_worker(ai.gq)
        together.wait(DEADLINE_S)  # each has a piece, and the answer is not at its end: it has stalled
        ai.ollama.go_away()
        ai.ollama.come_back()
        assert len({future.result(DEADLINE_S) for future in reading}) == 1
    assert httpx.get(address, headers={"Last-Event-ID": "end"}, timeout=DEADLINE_S).status_code == 204


def test_pages_follow_a_job_and_a_client_that_leaves_leaves_nothing_behind(server, ai, start_worker, until):
    leave(server, ai, until)
    see_why_a_job_waits_and_then_its_tokens_through_a_broken_connection(server, ai, start_worker)
    until(lambda: not waiters(ai.gq), "the last listener to go")


def test_the_gpuqueue_command_of_an_app_is_a_worker(ai, tmp_path):
    (tmp_path / "shop.py").write_text(FLASK)
    with serving("flask", "--app", "shop", "run", "--port", "0", folder=tmp_path) as server:
        address = submit(server, 5)
        ran = subprocess.run(
            [sys.executable, "-m", "flask", "--app", "shop", "gpuqueue", "worker", "--burst"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert f"database: {tmp_path / 'gpuqueue.db'}" in ran.stderr
        with listening(address) as events:
            assert [event.name for event in events] == ["piece", "done"]


def test_a_mounted_application_finds_the_queue_of_the_root(ai, tmp_path, start_worker):
    (tmp_path / "shop.py").write_text(FASTAPI)
    start_worker(ai.gq)
    job = ai.realtime()
    job.result(timeout_s=DEADLINE_S)
    with (
        serving(*UVICORN, "0", folder=tmp_path) as server,
        listening(f"{server}/mounted/jobs/{job.id}/events") as events,
    ):
        assert [event.name for event in events] == ["piece", "done"]
        missing = httpx.get(f"{server}/jobs/77/events", timeout=DEADLINE_S)
        assert missing.status_code == 404
        assert missing.json()["detail"].startswith("unknown job 77")
