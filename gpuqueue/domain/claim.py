"""Defines what a worker passes to a claim: rules that are not in the rows, and how many jobs it can take."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from gpuqueue.domain.settings import QueueSettings

MOST_SUSPECTS = 2  # that run at once, over all workers


class Capacity(NamedTuple):
    """How many jobs a worker can take: `coroutines` of the tasks named in `asynchronous`, `threads` of all others.

    `suspects` are the ids of suspects to claim first; each takes a thread, whatever its task.
    """

    threads: int
    coroutines: int = 0
    asynchronous: frozenset[str] = frozenset()
    suspects: tuple[int, ...] = ()


class ClaimRules(NamedTuple):
    """What a worker knows at a claim that is not in the rows: held queues, queue settings and the largest device budget.

    `parallel` is how many jobs of one model may run at once on a device; as many as it has slots where it is not named.
    """

    held: frozenset[str] = frozenset()
    queues: Mapping[str, QueueSettings] = MappingProxyType({})
    largest_bytes: int = 0
    parallel: Mapping[str, int] = MappingProxyType({})
