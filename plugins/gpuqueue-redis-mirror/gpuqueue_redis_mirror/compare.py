"""Owns the comparison of the mirror with the queue, key by key; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from gpuqueue import Reader
from gpuqueue_redis_mirror.layout import Key
from gpuqueue_redis_mirror.source import Source
from gpuqueue_redis_mirror.target import Target

AT_ONCE = 500
SHOWN = 80  # characters of a value


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that is not what the queue says."""

    name: str
    what: str
    expected: Key | None  # None: there should be none


def differences(reader: Reader, source: Source, target: Target, held: Mapping[str, bool]) -> Iterator[Difference]:
    """Compare every key, where queues are held as `held` says. Raises: redis.RedisError."""
    expected: set[str] = set()
    keys = source.everything(reader, target.prefix, held)
    while part := dict(islice(keys, AT_ONCE)):
        expected.update(part)
        found = target.read(list(part))
        for name, key in part.items():
            difference = _difference(key, found.get(name))
            if difference:
                yield Difference(name, difference, key)
    state = target.state()
    owned = {*reader.queues(), *(state.queues if state is not None else ())}
    for name in sorted(target.names(owned)):
        if name not in expected:
            yield Difference(name, "it is there, and the queue has no such thing", None)


def _difference(expected: Key, found: Key | None) -> str:
    if found is None:
        return "it is missing"
    if found.kind != expected.kind:
        return f"it is a {found.kind}, not a {expected.kind}"
    mine, theirs = expected.value, found.value
    if expected.kind == "list":
        if list(mine) == list(theirs):
            return ""
        return f"it has {len(theirs)} entries, the queue {len(mine)}" if len(mine) != len(theirs) else "its order is another"
    if dict(mine) == dict(theirs):
        return ""
    names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    first = names[0]
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{first} is {_short(theirs.get(first))}, the queue says {_short(mine.get(first))}{more}"


def _short(value: object) -> str:
    text = "not there" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
