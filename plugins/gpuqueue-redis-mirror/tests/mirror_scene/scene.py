"""Builds the queue that tests mirror, with tasks of every kind, and waits for the comparison."""

from __future__ import annotations

import redis
from gpuqueue_redis_mirror import compare, service
from gpuqueue_redis_mirror.source import Kept, Source
from gpuqueue_redis_mirror.target import Target

from gpuqueue.testing.waiting import wait_until

QUEUES = "[queues.mail]\n[queues.slow]\nconcurrency = 1\n[queues.empty]\n"


def section(url, more=""):
    return f'{QUEUES}[mirror]\nurl = "{url}"\n{more}'


def found(gq, server, kept=(1000, 5000)):
    """The differences between the mirror and the queue."""
    target = Target(server.url_with_password, "bull", service.identity(gq))
    source = Source(gq, Kept(*kept))
    try:
        with gq.read() as reader:
            return [f"{item.name}: {item.what}" for item in compare.differences(reader, source, target, source.held())]
    except redis.RedisError as error:
        return [str(error)]
    finally:
        target.close()


def level(gq, server, kept=(1000, 5000)):
    last = []

    def same():
        last[:] = found(gq, server, kept)
        return not last

    try:
        wait_until(same, "the mirror is as the queue")
    except AssertionError:
        raise AssertionError(last[:5]) from None


def heard(client, queue, event):
    """Wait for an event in a queue's stream: the keys of a batch may be ahead of what listeners hear."""
    wait_until(lambda: any(fields["event"] == event for _, fields in client.xrange(f"bull:{queue}:events")), f"{event} is told")
