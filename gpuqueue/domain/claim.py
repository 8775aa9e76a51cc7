"""Says how many jobs a worker can take."""

from __future__ import annotations

from typing import NamedTuple


class Capacity(NamedTuple):
    """How many jobs a worker can take: `coroutines` of the tasks named in `asynchronous`, `threads` of all others."""

    threads: int
    coroutines: int = 0
    asynchronous: frozenset[str] = frozenset()
