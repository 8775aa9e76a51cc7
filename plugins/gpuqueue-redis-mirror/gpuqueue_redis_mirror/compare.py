"""Compares the mirror with the queue, key by key."""

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
    """One key that does not match the queue."""

    name: str
    what: str
    expected: Key | None  # None: the key should not exist


def differences(reader: Reader, source: Source, target: Target, held: Mapping[str, bool]) -> Iterator[Difference]:
    """Compare every key; `held` says which queues are held. Raises: redis.RedisError."""
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
            yield Difference(name, "not in the queue", None)


def _difference(expected: Key, found: Key | None) -> str:
    if found is None:
        return "missing"
    if found.kind != expected.kind:
        return f"wrong type: {found.kind} instead of {expected.kind}"
    mine, theirs = expected.value, found.value
    if expected.kind == "list":
        if list(mine) == list(theirs):
            return ""
        return f"{len(theirs)} entries, but {len(mine)} in the queue" if len(mine) != len(theirs) else "wrong order"
    if dict(mine) == dict(theirs):
        return ""
    names = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    first = names[0]
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{first} is {_short(theirs.get(first))}, but {_short(mine.get(first))} in the queue{more}"


def _short(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
