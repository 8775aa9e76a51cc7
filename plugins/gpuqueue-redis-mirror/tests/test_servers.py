"""The servers that the tests run break and mend as they are told to."""

from __future__ import annotations

import redis

from .servers import Server


def test_a_server_answers_on_its_port_and_is_empty(redis_server: Server) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.ping()
        assert client.dbsize() == 0
