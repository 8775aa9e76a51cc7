"""Owns what a worker says when it claims: the rules that it knows beside the rows, and how much it can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from gpuqueue.domain.settings import QueueSettings

THREAD, COROUTINE = "thread", "coroutine"


def _thread(_task: str) -> str:
    return THREAD


class Capacity(NamedTuple):
    """How many jobs a worker can take, by the kind of runner that their task needs."""

    free: Mapping[str, int]
    kind_of: Callable[[str], str] = _thread


class ClaimRules(NamedTuple):
    """What a worker knows beside the rows when it claims: the held queues, and what the largest device could take."""

    held: frozenset[str] = frozenset()
    queues: Mapping[str, QueueSettings] = MappingProxyType({})
    largest_bytes: int = 0
