"""Keeps an idle connection for each worker and queue: BullMQ's readers find workers by listing the server's clients by name."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from contextlib import suppress

import redis

from gpuqueue import WorkerInfo
from gpuqueue_redis_mirror.target import TIMEOUT_S


def client_names(prefix: str, workers: Iterable[WorkerInfo], queues: Iterable[str]) -> set[str]:
    """Return the connection names that readers look for: per worker and queue one for Node's clients and one for Python's."""
    names = set()
    every = list(queues)
    for worker in workers:
        name = re.sub(r"[^!-~]", "_", worker.id)
        for queue in every if worker.queues is None else worker.queues:
            names.add(f"{prefix}:{base64.b64encode(queue.encode()).decode()}:w:{name}")
            names.add(f"{prefix}:{re.sub(r'[^!-~]', '_', queue)}:w:{name}")
    return names


class WorkerConnections:
    """Holds one idle connection for each name."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._open: dict[str, redis.Redis] = {}

    def show(self, names: set[str]) -> None:
        """Open missing connections and close surplus ones. Raises: redis.RedisError."""
        for name in self._open.keys() - names:
            self._close(name)
        for name in sorted(names):
            client = self._open.get(name)
            if client is None:
                client = self._open[name] = redis.Redis.from_url(
                    self._url,
                    client_name=name,
                    single_connection_client=True,
                    socket_timeout=TIMEOUT_S,
                    socket_connect_timeout=TIMEOUT_S,
                    retry=None,
                )
            try:
                client.ping()
            except redis.RedisError:
                self._close(name)
                raise

    def close(self) -> None:
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        with suppress(redis.RedisError, OSError):
            self._open.pop(name).close()
