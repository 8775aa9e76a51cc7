"""Writes the mirror to Redis or Valkey, and keeps its own key there, which fences off late writers.

The mirror's own keys begin with `gpuqueue-mirror:`, so no pattern for BullMQ's keys finds them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import redis

from gpuqueue_redis_mirror.layout import MAX_EVENTS, Key

OWN = "gpuqueue-mirror"
SWAP_LIMIT = 50_000  # the most keys in one swap; the rest is written in place, so that no reader waits long
AT_ONCE = 1_000
PORTION = 16_000_000  # characters of commands; a server accepts half a GB
LISTS = ("wait", "active", "prioritized", "delayed", "completed", "failed")
TIMEOUT_S = 5.0
FUTURE_S = 3600.0
BUSY_S = 30.0  # a mirror written more recently than this has an active writer
Command = tuple[str | int, ...]  # the words of one command
# Deletes keys and runs commands atomically, behind the fence. Its first write needs memory, so a full server rejects all of it.
# A repeated stream entry is rejected, because a stream's ids only grow; that error names XADD and is ignored. The commands come
# as one JSON string, which costs the sender a tenth of what separate words cost.
FENCED = """
local term, database, takes_over = tonumber(ARGV[1]), ARGV[2], ARGV[3] == '1'
local held = redis.call('HMGET', KEYS[1], 'term', 'database')
local is_mine = not held[2] or held[2] == '' or held[2] == database
if not is_mine and not takes_over then return {'occupied', held[2]} end
if is_mine and tonumber(held[1] or 0) > term then return {'superseded', held[1]} end
if is_mine then redis.call('HSET', KEYS[1], 'term', term) end
for place = 5, #ARGV do redis.call('UNLINK', ARGV[place]) end
for _, command in ipairs(cjson.decode(ARGV[4])) do
  local reply = redis.pcall(unpack(command))
  if type(reply) == 'table' and reply.err and not string.find(reply.err, 'XADD') then return reply end
end
return {'written', ''}
"""


class Superseded(Exception):
    """A worker of a later term writes this mirror."""


class Occupied(Exception):
    """The keys belong to another database or program, and are not overwritten."""


@dataclass(frozen=True, slots=True)
class MirrorState:
    """The mirror's own record of what is in the target."""

    term: int = 0
    cursor: int | None = None  # the last event in the mirror; None: the mirror is incomplete
    database: str = ""
    queues: tuple[str, ...] = ()
    written_s: float = 0.0
    rebuilt_s: float = 0.0
    asked: str = ""  # "rebuild" or "replace", if a person requested it


@dataclass(slots=True)
class Changes:
    """One batch: keys to write, keys to delete, and stream entries: {stream: [(milliseconds, number or None, fields)]}."""

    keys: dict[str, Key] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    events: dict[str, list[tuple[int, int | None, dict[str, str]]]] = field(default_factory=dict)


class Target:
    """A Redis or Valkey database, and the prefix of the mirrored queues."""

    def __init__(self, url: str, prefix: str, database: str) -> None:
        self.prefix = prefix
        self.database = database  # the database that is mirrored
        self.client: Any = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="surrogateescape",
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            client_name="gpuqueue-mirror",
            retry=None,
        )
        self._own = f"{OWN}:{prefix}"
        self._fenced = self.client.register_script(FENCED)
        self._last_ms: dict[str, int] = {}

    def close(self) -> None:
        self.client.close()

    # --- the mirror's own key ---

    def state(self) -> MirrorState | None:
        """Return the mirror's own record, or None if there is none."""
        return _state(self.client.hgetall(self._own))

    def ask(self, what: str) -> None:
        """Ask the mirror's writer for a rebuild."""
        self.client.hset(self._own, "asked", what)

    def begin(self, term: int, queues: Iterable[str]) -> None:
        """Lock out workers of earlier terms, and repair the event streams of these queues.

        Another database's mirror is left unchanged. Raises: Superseded; redis.RedisError.
        """
        state = self.state()
        if state is not None and self._is_mine(state):
            self._run(term, [self._say(written_s=repr(time.time()))])
        if state is not None and state.database == self.database:
            self.mend_streams(queues)

    def _is_mine(self, state: MirrorState) -> bool:
        return state.database in ("", self.database)

    def _say(self, **fields: str | int) -> Command:
        return ("HSET", self._own, *chain.from_iterable(fields.items()))

    def _run(self, term: int, commands: Iterable[Command], *, gone: Iterable[str] = (), takes_over: bool = False) -> None:
        """Delete keys and run commands atomically (in several steps above PORTION), unless a worker of a later term has written.

        Raises: Superseded; Occupied, unless `takes_over`; redis.RedisError.
        """
        for text in _portions(commands):
            refused, by = self._fenced(keys=[self._own], args=[term, self.database, int(takes_over), text, *gone])
            gone = ()
            if refused == "occupied":
                raise self._occupied(by)
            if refused == "superseded":
                raise Superseded(f"another worker writes the mirror (term {by}; this worker has term {term})")

    # --- writing ---

    def apply(self, changes: Changes, *, cursor: int, queues: Sequence[str], term: int) -> None:
        """Write one batch, all or nothing. Raises: Superseded; redis.RedisError."""
        said = self._say(cursor=cursor, queues="\n".join(queues), written_s=repr(time.time()))
        self._run(term, [*_put(changes.keys), *self._told(changes), said], gone=changes.gone)

    def put(self, keys: Mapping[str, Key], *, term: int) -> None:
        """Write keys before any list names them. Raises: as `apply`."""
        self._run(term, _put(keys))

    def _told(self, changes: Changes) -> Iterator[Command]:
        for stream, entries in changes.events.items():
            last_ms = self._newest_ms(stream)
            for at_ms, number, fields in entries:
                # An entry that comes from no event of the queue has no number; it gets its own millisecond.
                last_ms = max(last_ms, at_ms) if number is not None else max(last_ms + 1, at_ms)
                id_ = f"{last_ms}-{number or 0}"
                yield "XADD", stream, "MAXLEN", "~", MAX_EVENTS, id_, *chain.from_iterable(fields.items())
            self._last_ms[stream] = last_ms

    def _newest_ms(self, stream: str) -> int:
        if stream not in self._last_ms:
            newest: Any = self.client.xrevrange(stream, count=1)
            self._last_ms[stream] = int(newest[0][0].partition("-")[0]) if newest else 0
        return self._last_ms[stream]

    def rebuild(
        self, keys: Iterable[tuple[str, Key]], *, cursor: int, queues: Sequence[str], term: int, replace: bool = False
    ) -> int:
        """Rewrite everything and delete keys that do not belong; returns the number of keys.

        Up to SWAP_LIMIT keys are staged and swapped in one transaction, so no reader sees a partial mirror.
        Raises: Occupied; Superseded; redis.RedisError.
        """
        before = self.state()
        self._refuse_others(before, queues, replace=replace)
        self._last_ms.clear()
        staging = f"{self._own}:staging:"
        for name in self.client.scan_iter(match=f"{_escaped(staging)}*", count=1000):
            self.client.unlink(name)
        staged: set[str] = set()
        in_place: set[str] = set()
        pending = iter(keys)
        while part := dict(islice(pending, AT_ONCE)):
            direct = len(staged) >= SWAP_LIMIT
            if direct:
                commands = [("HDEL", self._own, "cursor"), *_put(part)]  # incomplete from here on
            else:
                commands = [*_put({staging + name: key for name, key in part.items()})]
            self._run(term, commands, takes_over=True)
            (in_place if direct else staged).update(part)
        owned = {*queues, *(before.queues if before is not None else ())}
        strays = [name for name in self.names(owned) if name not in staged and name not in in_place]
        now, named = repr(time.time()), "\n".join(queues)
        swap = [
            *(("RENAME", staging + name, name) for name in staged),
            self._say(cursor=cursor, term=term, database=self.database, queues=named, written_s=now, rebuilt_s=now),
            ("HDEL", self._own, "asked"),
        ]
        self.mend_streams(queues)
        self._run(term, swap, gone=strays, takes_over=True)
        return len(staged) + len(in_place)

    def mend_streams(self, queues: Iterable[str]) -> None:
        """Delete event streams whose newest entry is in the future, and keys of another type in their place."""
        for queue in queues:
            stream = f"{self.prefix}:{queue}:events"
            kind = str(self.client.type(stream))
            if kind == "stream" and self._newest_ms(stream) <= (time.time() + FUTURE_S) * 1000:
                continue
            if kind != "none":
                self.client.unlink(stream)
                self._last_ms.pop(stream, None)

    def _occupied(self, database: str) -> Occupied:
        return Occupied(f"prefix {self.prefix!r} already has the mirror of {database}; set another prefix or url in [mirror]")

    def _refuse_others(self, state: MirrorState | None, queues: Sequence[str], *, replace: bool) -> None:
        if replace:
            return
        if state is not None and not self._is_mine(state) and time.time() - state.written_s < BUSY_S:
            raise self._occupied(state.database)
        if state is None or not state.database:
            for queue in queues:
                version = self.client.hget(f"{self.prefix}:{queue}:meta", "version")
                if version and not str(version).startswith("gpuqueue"):
                    raise Occupied(
                        f"{self.prefix}:{queue} is a queue of {version}, and a mirror would replace its jobs; set another prefix "
                        "or url in [mirror], or run `gpuqueue mirror rebuild --replace` to delete the jobs"
                    )

    # --- reading back, to compare ---

    def names(self, queues: Iterable[str]) -> Iterator[str]:
        """Yield the keys of these queues, except their events."""
        bases = tuple(f"{self.prefix}:{queue}:" for queue in queues)
        streams = {f"{base}events" for base in bases}
        for name in self.client.scan_iter(match=f"{_escaped(self.prefix)}:*", count=1000):
            if name.startswith(bases) and name not in streams:
                yield name

    def listed(self, queue: str) -> set[int]:
        """Return the jobs in the lists of a queue; entries of other programs are left to the next comparison."""
        lists = {f"{self.prefix}:{queue}:{suffix}" for suffix in LISTS}
        found = self.read(sorted(lists))
        return {int(id_) for key in found.values() if key.kind in ("list", "zset") for id_ in key.value if id_.isdecimal()}

    def read(self, names: Sequence[str]) -> dict[str, Key]:
        """Return the contents of these keys, without those that do not exist."""
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.type(name)
            kinds = pipe.execute()
            there = [(name, str(kind)) for name, kind in zip(names, kinds, strict=True) if str(kind) != "none"]
            for name, kind in there:
                if kind == "hash":
                    pipe.hgetall(name)
                elif kind == "list":
                    pipe.lrange(name, 0, -1)
                elif kind == "zset":
                    pipe.zrange(name, 0, -1, withscores=True)
                else:
                    pipe.exists(name)
            values = pipe.execute()
        found = {}
        for (name, kind), value in zip(there, values, strict=True):
            found[name] = Key(kind, dict(value) if kind == "zset" else value)
        return found


def _put(keys: Mapping[str, Key]) -> Iterator[Command]:
    """Yield the commands that write these keys, whatever they held before."""
    for part in _parts(list(keys)):
        yield "UNLINK", *part
    for name, key in keys.items():
        if not key:
            continue
        if key.kind == "hash":
            yield "HSET", name, *chain.from_iterable(key.value.items())
        elif key.kind == "list":
            for part in _parts(key.value):
                yield "RPUSH", name, *part
        else:
            for part in _parts(list(key.value.items())):
                yield "ZADD", name, *(word for member, score in part for word in (repr(score), member))


def _portions(commands: Iterable[Command]) -> Iterator[str]:
    """Yield the commands as JSON lists of about PORTION characters."""
    texts: list[str] = []
    size = 0
    for command in commands:
        texts.append(json.dumps(command))
        size += len(texts[-1])
        if size >= PORTION:
            yield f"[{','.join(texts)}]"
            texts, size = [], 0
    if texts:
        yield f"[{','.join(texts)}]"


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


def _state(fields: Mapping[str, str]) -> MirrorState | None:
    if not fields:
        return None
    cursor = fields.get("cursor")
    return MirrorState(
        term=int(fields.get("term", 0)),
        cursor=None if cursor is None else int(cursor),
        database=fields.get("database", ""),
        queues=tuple(filter(None, fields.get("queues", "").split("\n"))),
        written_s=float(fields.get("written_s", 0.0)),
        rebuilt_s=float(fields.get("rebuilt_s", 0.0)),
        asked=fields.get("asked", ""),
    )


def _escaped(text: str) -> str:
    """Escape a string for a Redis pattern."""
    return "".join(f"\\{character}" if character in "*?[]^-\\" else character for character in text)
