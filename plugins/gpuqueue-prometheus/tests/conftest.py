"""Owns what this plugin's tests share: a worker that serves metrics on a free port, and what Prometheus would read there."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from gpuqueue_prometheus import Prometheus
from prometheus_client.parser import text_string_to_metric_families

from gpuqueue import GPUQueue, Worker
from gpuqueue.testing import wait_until

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
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=30)
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
    """What the service last said of itself, under this worker or any."""
    return next(
        (
            service.status
            for service in gq.services()
            if service.name == "prometheus" and (worker is None or service.worker_id == worker.id)
        ),
        {},
    )


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
def serve(make_gpuqueue: Any, start_worker: Callable[..., Worker]) -> Callable[..., Served]:
    """`serve(toml="", *, gq=None, plugins={}, **worker_options)` starts a worker with the plugin and waits until it listens."""

    def start(toml: str = "", *, gq: GPUQueue | None = None, plugins: Mapping[str, object] = {}, **options: Any) -> Served:
        made = gq or make_gpuqueue(LISTEN + toml, plugins={"prometheus": Prometheus(), **plugins})
        worker = start_worker(made, **options)
        url = wait_until(lambda: status_of(made, worker).get("metrics"), "it listens")
        return Served(made, url.removesuffix("/metrics"), worker)

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
