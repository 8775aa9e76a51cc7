"""The lifespan under ASGI: a worker for as long as the application lives, around whatever lifespan the application has."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette

from gpuqueue import UsageError
from gpuqueue.integrations.asgi import LifespanMiddleware
from gpuqueue.integrations.fastapi import current_queue, lifespan
from gpuqueue.testing.waiting import DEADLINE_S
from tests.integrations.servers import serving

APP = """
import os
from fastapi import FastAPI
from gpuqueue import GPUQueue
from gpuqueue.integrations.fastapi import lifespan

gq = GPUQueue("gpuqueue.db")


@gq.task(name="where")
def where() -> int:
    return os.getpid()


app = FastAPI(lifespan=lifespan(gq, worker=True))


@app.get("/where")
async def ask() -> int:
    return await (await where.aenqueue()).aresult(timeout_s=120)
"""


class Server:
    """Speaks the lifespan protocol with an application as a server does."""

    def __init__(self, app) -> None:
        self._app = app
        self._to_app: asyncio.Queue[dict] = asyncio.Queue()
        self._from_app: asyncio.Queue[dict] = asyncio.Queue()
        self.state: dict = {}

    async def start(self) -> dict:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        self.running = asyncio.create_task(self._app(scope, self._to_app.get, self._from_app.put))
        return await self._exchange("lifespan.startup")

    async def stop(self) -> dict:
        answer = await self._exchange("lifespan.shutdown")
        await self.running
        return answer

    async def _exchange(self, kind: str) -> dict:
        await self._to_app.put({"type": kind})
        answering = asyncio.create_task(self._from_app.get())
        await asyncio.wait((self.running, answering), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            answering.cancel()
            self.running.result()
            raise AssertionError("the application left without a word")
        return answering.result()


def story(told):
    return asyncio.run(asyncio.wait_for(told, DEADLINE_S))


@pytest.fixture
def add(gq):
    @gq.task(name="add")
    def add(a: int, b: int) -> int:
        return a + b

    return add


def own_lifespan(gq, events):
    @asynccontextmanager
    async def own(app):
        assert gq.workers() == []
        events.append("set up")
        yield {"pool": "a pool"}
        assert gq.workers() == []
        events.append("taken down")

    return own


def test_jobs_run_while_what_the_applications_own_lifespan_sets_up_is_there(gq, add):
    events = []

    @gq.task(name="note")
    def note() -> None:
        events.append("ran")

    async def tell():
        async with lifespan(gq, worker=True, inner=own_lifespan(gq, events))(None) as state:
            assert state == {"pool": "a pool", "gpuqueue": gq}
            assert await (await add.aenqueue(a=1, b=2)).aresult(timeout_s=DEADLINE_S) == 3
            await (await note.aenqueue()).aresult(timeout_s=DEADLINE_S)
        assert gq.workers() == []

    story(tell())
    assert events == ["set up", "ran", "taken down"]


def test_it_lives_again_after_its_end_as_in_a_test_suite(gq, add):
    async def tell():
        running = lifespan(gq, worker={"threads": 1})
        for number in range(2):
            async with running(None):
                assert await (await add.aenqueue(a=number, b=2)).aresult(timeout_s=DEADLINE_S) == number + 2

    story(tell())


def test_without_a_worker_nothing_runs(gq):
    async def tell():
        async with lifespan(gq)(None):
            assert await gq.aworkers() == []

    story(tell())


def test_an_error_of_the_applications_own_lifespan_is_not_hidden_and_stops_the_worker(gq):
    @asynccontextmanager
    async def broken(app):
        yield
        raise RuntimeError("cannot take down")

    async def tell():
        async with lifespan(gq, worker=True, inner=broken)(None):
            pass

    with pytest.raises(RuntimeError, match="cannot take down"):
        story(tell())
    assert gq.workers() == []


async def knows_none(scope, receive, send):
    assert scope["type"] == "http"


async def leaves_it(scope, receive, send):
    await receive()


@pytest.mark.parametrize("app", [knows_none, leaves_it])
def test_an_application_that_knows_no_lifespan_gets_one(gq, add, app):
    async def tell():
        server = Server(LifespanMiddleware(app, gq, worker=True))
        assert await server.start() == {"type": "lifespan.startup.complete"}
        assert server.state["gpuqueue"] is gq
        assert await (await add.aenqueue(a=1, b=2)).aresult(timeout_s=DEADLINE_S) == 3
        assert await server.stop() == {"type": "lifespan.shutdown.complete"}

    story(tell())
    assert gq.workers() == []


def test_an_applications_own_lifespan_is_wrapped(gq, add):
    events = []

    async def tell():
        server = Server(LifespanMiddleware(Starlette(lifespan=own_lifespan(gq, events)), gq, worker=True))
        assert await server.start() == {"type": "lifespan.startup.complete"}
        assert server.state == {"pool": "a pool", "gpuqueue": gq}
        assert events == ["set up"]
        assert await (await add.aenqueue(a=1, b=2)).aresult(timeout_s=DEADLINE_S) == 3
        assert await server.stop() == {"type": "lifespan.shutdown.complete"}
        assert events == ["set up", "taken down"]

    story(tell())
    assert gq.workers() == []


def test_an_application_that_cannot_start_says_so_and_no_worker_begins(gq):
    @asynccontextmanager
    async def broken(app):
        raise RuntimeError("no database")
        yield

    async def tell():
        server = Server(LifespanMiddleware(Starlette(lifespan=broken), gq, worker=True))
        answer = await server.start()
        assert answer["type"] == "lifespan.startup.failed"
        assert "no database" in answer["message"]
        with pytest.raises(RuntimeError):
            await server.running

    story(tell())
    assert gq.workers() == []


def test_a_request_without_the_lifespan_says_what_is_missing():
    from starlette.requests import HTTPConnection

    with pytest.raises(UsageError, match="lifespan=lifespan"):
        story(current_queue(HTTPConnection({"type": "http", "headers": []})))


@pytest.mark.parametrize("processes", ["1", "2"])
def test_jobs_run_in_one_of_the_servers_processes(tmp_path, processes):
    (tmp_path / "shop.py").write_text(APP)
    command = ("uvicorn", "shop:app", "--host", "127.0.0.1", "--port", "PORT", "--lifespan", "on", "--workers", processes)
    with serving(*command, folder=tmp_path) as server:
        pids = {httpx.get(f"{server}/where", timeout=DEADLINE_S).raise_for_status().json() for _ in range(6)}
    assert len(pids) == 1
