"""The servers that the tests run break and mend as they are told to."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .servers import Server


def connect(url: str, timeout_s: float = 20.0) -> redis.Redis:
    """A client that tries once."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=timeout_s, decode_responses=True)


def test_a_server_answers_on_its_port_and_is_empty(redis_server: Server) -> None:
    with connect(redis_server.url) as client:
        assert client.ping()
        assert client.dbsize() == 0


def test_servers_do_not_share_what_they_hold(make_redis_server: Callable[[], Server]) -> None:
    one, other = make_redis_server(), make_redis_server()
    with one.client() as client, other.client() as others:
        client.set("a", 1)
        assert others.get("a") is None


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_a_server_that_ended_refuses_connections_and_comes_back_empty_on_its_port(
    redis_server: Server, end: Callable[[Server], None]
) -> None:
    url = redis_server.url
    with redis_server.client() as client:
        client.set("a", 1)
    end(redis_server)
    assert not redis_server.running
    with connect(url) as client, pytest.raises(redis.ConnectionError):
        client.ping()
    redis_server.start()
    assert redis_server.url == url
    with connect(url) as client:
        assert client.dbsize() == 0


def test_a_restart_keeps_the_data_when_it_is_told_to(redis_server: Server) -> None:
    with redis_server.client() as client:
        client.set("a", 1)
        redis_server.restart(keep_data=True)
        assert client.get("a") == "1"
        redis_server.restart()
        assert client.get("a") is None


def test_a_flush_forgets_every_key(redis_server: Server) -> None:
    with redis_server.client() as client:
        client.set("a", 1)
        redis_server.flush()
        assert client.dbsize() == 0


def test_a_password_is_asked_of_new_connections_until_a_restart(redis_server: Server) -> None:
    with connect(redis_server.url) as before:
        before.ping()
        redis_server.set_password("s3cret")
        assert before.ping()
        with connect(redis_server.url) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with connect(redis_server.url_with_password) as client, redis_server.client() as its_own:
            assert client.ping()
            assert its_own.ping()
        redis_server.disconnect_clients()
        with pytest.raises(redis.RedisError):
            before.ping()
    redis_server.restart()
    with connect(redis_server.url) as client:
        assert client.ping()


def test_a_full_server_refuses_writes_and_reads_on(redis_server: Server) -> None:
    with connect(redis_server.url) as client:
        client.set("a", 1)
        redis_server.make_full()
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("b", 1)
        assert client.get("a") == "1"
        redis_server.make_roomy()
        client.set("b", 1)


def test_a_read_only_server_refuses_writes_and_reads_on(redis_server: Server) -> None:
    with connect(redis_server.url) as client:
        client.set("a", 1)
        redis_server.make_read_only()
        with pytest.raises(redis.exceptions.ReadOnlyError):
            client.set("b", 1)
        assert client.get("a") == "1"
        redis_server.make_writable()
        client.set("b", 1)
        assert client.get("a") == "1"


def test_a_frozen_server_accepts_connections_and_answers_when_it_thaws(redis_server: Server) -> None:
    redis_server.freeze()
    with connect(redis_server.url, timeout_s=0.05) as client, pytest.raises(redis.TimeoutError):
        client.ping()
    redis_server.thaw()
    with connect(redis_server.url) as client:
        assert client.ping()


def test_a_frozen_server_can_be_ended(redis_server: Server) -> None:
    redis_server.freeze()
    redis_server.stop()
    assert not redis_server.running


def test_a_paused_server_accepts_connections_and_answers_nobody(redis_server: Server) -> None:
    redis_server.pause_ms(60_000)
    with connect(redis_server.url, timeout_s=0.05) as client, pytest.raises(redis.TimeoutError):
        client.ping()


def test_a_pause_ends_when_its_time_is_over(redis_server: Server) -> None:
    redis_server.pause_ms(50)
    with connect(redis_server.url) as client:
        assert client.ping()


def test_what_a_server_that_cannot_start_wrote_is_told(redis_server: Server) -> None:
    redis_server.stop()
    with socket.create_server(("127.0.0.1", redis_server.port)), pytest.raises(RuntimeError, match="bind"):
        redis_server.start()
