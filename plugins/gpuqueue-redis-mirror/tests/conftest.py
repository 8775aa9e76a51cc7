"""Owns what this plugin's tests share: a real server for each test, and more when one asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .servers import Server


@pytest.fixture
def make_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Server]]:
    """Start servers, each on a port and in a folder of its own; those that still run are ended at the end."""
    started: list[Server] = []

    def make() -> Server:
        started.append(Server(tmp_path_factory.mktemp("redis")))
        return started[-1].start()

    yield make
    for server in started:
        server.kill()


@pytest.fixture
def redis_server(make_redis_server: Callable[[], Server]) -> Server:
    """An empty server that runs."""
    return make_redis_server()
