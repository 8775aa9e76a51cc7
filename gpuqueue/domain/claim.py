"""Owns what a worker says when it claims: the rules that it knows beside the rows, and how much it can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

THREAD, COROUTINE = "thread", "coroutine"


def _thread(_task: str) -> str:
    return THREAD


class Capacity(NamedTuple):
    """How many jobs a worker can take, by the kind of runner that their task needs."""

    free: Mapping[str, int]
    kind_of: Callable[[str], str] = _thread
