"""Shared fixtures: a worker that serves metrics on a free port, and what Prometheus would read there."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import pytest
from gpuqueue_prometheus import Prometheus
from prometheus_client.parser import text_string_to_metric_families

from gpuqueue import GPUQueue, Worker
from gpuqueue.testing import wait_until
from gpuqueue.testing.waiting import DEADLINE_S

LISTEN = '[prometheus]\nlisten = "127.0.0.1:0"\n'


@dataclass
class Page:
    status: int
    content_type: str
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Served:
    """A queue object, and the worker whose service answers for it."""

    gq: GPUQueue
    url: str
    worker: Worker

    def get(self, path: str, accept: str = "", method: str = "GET") -> Page:
        """Ask for a page as any HTTP client does."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=DEADLINE_S)
        try:
            connection.request(method, path, headers={"Accept": accept} if accept else {})
            answer = connection.getresponse()
            return Page(answer.status, answer.headers["Content-Type"], answer.read().decode())
        finally:
            connection.close()

    def samples(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Scrape once: {(name, label values in the order of their names): value}."""
        page = self.get("/metrics")
        assert page.status == 200, page.text
        return {
            (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(page.text)
            for sample in family.samples
        }

    def value(self, name: str, *labels: str) -> float | None:
        """Scrape once for one value; labels in the order of their names. None when there is no such series."""
        return self.samples().get((name, labels))


def status_of(gq: GPUQueue, worker: Worker | None = None) -> Mapping[str, Any]:
    """What the service has said of itself since a worker, this one or any, took it over."""
    for service in gq.services():
        is_of = worker is None or service.worker_id == worker.id
        if service.name == "prometheus" and is_of and service.noted_at and service.since and service.noted_at >= service.since:
            return service.status
    return {}


@pytest.fixture
def said() -> Callable[..., Mapping[str, Any]]:
    """`said(gq, worker=None)` is what the service last said of itself, {} before."""
    return status_of


@pytest.fixture
def start_worker() -> Iterator[Callable[..., Worker]]:
    """Start workers in the background; those that still run are stopped at the end, without patience for their jobs."""
    started: list[Worker] = []

    def start(gq: GPUQueue, **options: Any) -> Worker:
        started.append(Worker(gq, **options))
        return started[-1].start()

    yield start
    for worker in started:
        worker.stop(grace_s=0)


@pytest.fixture
def make_gq(make_gpuqueue: Any) -> Callable[..., GPUQueue]:
    """`make_gq(toml="", *, plugins={})` makes a queue object with the plugin, which listens on any free port."""

    def make(toml: str = "", *, plugins: Mapping[str, object] = MappingProxyType({})) -> GPUQueue:
        made: GPUQueue = make_gpuqueue(LISTEN + toml, plugins={"prometheus": Prometheus(), **plugins})
        return made

    return make


@pytest.fixture
def gq(make_gq: Callable[..., GPUQueue]) -> GPUQueue:
    """A queue object with the queues `mail` and `work`."""
    return make_gq("[queues.mail]\n[queues.work]\n")


@pytest.fixture
def serve(start_worker: Callable[..., Worker]) -> Callable[..., Served]:
    """`serve(gq, **worker_options)` starts a worker, which must know its tasks by now, and waits until it listens."""

    def start(gq: GPUQueue, **options: Any) -> Served:
        worker = start_worker(gq, **options)
        url = wait_until(lambda: status_of(gq, worker).get("metrics"), "it listens")
        return Served(gq, url.removesuffix("/metrics"), worker)

    return start


@pytest.fixture
def ai_toml(ollama_server: Any) -> str:
    """A card, its Ollama, a person's queue, and one that makes room for it at once."""
    return f"""
[gpu]
budget = "5GB"
margin = "3GB"
[ollama]
url = "{ollama_server.url}"
connect = "2m"
probe_every = "100ms"
settle = "30ms"
release = "5s"
[models."gemma4:e4b"]
vram = "4.5GB"
[models.nomic-embed-text]
vram = "0.5GB"
[queues.ai-realtime]
gpu = true
concurrency = 1
when_unavailable = "reject"
[queues.ai-batch]
gpu = true
concurrency = 1
yields_to = ["ai-realtime"]
min_run = "0s"
"""
