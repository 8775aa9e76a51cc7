"""Shared fixtures: a real server for each test, and every client that can read it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from gpuqueue_redis_mirror import Mirror
from mirror_scene.listener import NodeQueueEvents
from mirror_scene.node_packages import NodeMissing
from mirror_scene.node_process import NodeProcess
from mirror_scene.readers import READERS, BullBoard, NodeBullMQ, PythonBullMQ, Reader
from mirror_scene.scene import section
from mirror_scene.servers import Server, servers

from gpuqueue import Discard, Worker, current_job
from gpuqueue.testing.waiting import DEADLINE_S


@pytest.fixture
def make_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    """Start servers, each on a port and in a folder of its own; those that still run are ended at the end."""
    with servers(lambda: tmp_path_factory.mktemp("redis")) as make:
        yield make


@pytest.fixture
def redis_server(make_redis_server: Callable[[], Server]) -> Server:
    """An empty server that runs."""
    return make_redis_server()


@pytest.fixture(scope="session")
def node_process() -> Iterator[Callable[[str], NodeProcess]]:
    """`node_process(package)` is the process that reads with one BullMQ, the same one for all tests as long as it lives."""
    processes: dict[str, NodeProcess] = {}

    def process_of(package: str) -> NodeProcess:
        if package not in processes or not processes[package].running:
            try:
                processes[package] = NodeProcess("reader.mjs", package)
            except NodeMissing as missing:
                pytest.skip(str(missing))
        return processes[package]

    yield process_of
    for process in processes.values():
        process.close()


@pytest.fixture
def make_reader(node_process: Callable[[str], NodeProcess]) -> Iterator[Callable[[str, str], Reader]]:
    """`make_reader(kind, url)` connects one of READERS to a server; closed at the end. It skips where there is no Node."""
    made: list[Reader] = []

    def make(kind: str, url: str) -> Reader:
        match kind:
            case "python":
                reader: Reader = PythonBullMQ(url)
            case "node-5":
                reader = NodeBullMQ(url, node_process("bullmq-5"), 5)
            case "node-6":
                reader = NodeBullMQ(url, node_process("bullmq"), 6)
            case "bull-board":
                reader = BullBoard(url, node_process("bullmq"))
            case _:
                raise ValueError(f"there is no reader {kind!r}, only {', '.join(READERS)}")
        made.append(reader)
        return reader

    yield make
    for reader in made:
        reader.close()


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, make_reader: Callable[[str, str], Reader], redis_server: Server) -> Reader:
    """Each client in turn, reading `redis_server`."""
    return make_reader(request.param, redis_server.url)


@pytest.fixture
def every_reader(make_reader: Callable[[str, str], Reader], redis_server: Server) -> list[Reader]:
    """All clients at once, reading `redis_server`."""
    return [make_reader(kind, redis_server.url) for kind in READERS]


@pytest.fixture
def listen(redis_server: Server) -> Iterator[Callable[..., NodeQueueEvents]]:
    """`listen(queue, package=…, start=…)` starts a listener on `redis_server`, ended at the end; without Node it skips."""
    listeners: list[NodeQueueEvents] = []

    def start(queue: str, **options: str) -> NodeQueueEvents:
        try:
            listeners.append(NodeQueueEvents(redis_server.url, queue, **options))
        except NodeMissing as missing:
            pytest.skip(str(missing))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def make(make_gpuqueue, redis_server):
    """`make(more)` is a queue object with the mirror, and tasks of every kind."""

    def make(more=""):
        gq = make_gpuqueue(section(redis_server.url_with_password, more), plugins={"mirror": Mirror()}, discover_plugins=False)

        @gq.task(name="work", queue="mail", max_attempts=2)
        def work(n, fails=False):
            job = current_job()
            job.log(f"at {n}")
            job.progress(0.5, note="half")
            if fails:
                raise Discard("not this one")
            return {"n": n}

        @gq.task(name="wait", queue="slow")
        def wait():
            assert make.gate.wait(DEADLINE_S)

        gq.work, gq.wait = work, wait
        return gq

    make.gate = threading.Event()
    yield make
    make.gate.set()


@pytest.fixture
def start():
    started = []

    def start(gq):
        started.append(Worker(gq))
        return started[-1].start()

    yield start
    for worker in started:
        worker.stop(grace_s=0)


@pytest.fixture
def client(redis_server):
    with redis_server.client() as client:
        yield client
