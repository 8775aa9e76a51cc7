"""Owns what is written to Redis or Valkey, and the mirror's own key there, which fences late writers; reads no queue.

The mirror's own keys begin with `gpuqueue-mirror:`, so that no pattern of BullMQ's finds them.
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
SWAP_LIMIT = 50_000  # keys that one swap replaces; more are written in place, so that no reader waits long
AT_ONCE = 1_000
PORTION = 16_000_000  # characters of commands; a server takes half a GB
LISTS = ("wait", "active", "prioritized", "delayed", "completed", "failed")
TIMEOUT_S = 5.0
FUTURE_S = 3600.0
BUSY_S = 30.0  # a mirror that was written so lately has a writer
Command = tuple[str | int, ...]  # the words of one command
# Takes keys away and runs commands in one go behind the fence. Its first write asks for memory: a full server refuses all of it.
# What was told before is refused, since a stream's ids only grow: that error names XADD. The commands come as one JSON text,
# which costs the sender a tenth of what a word at a time does.
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
    """Another worker of a later term writes this mirror."""


class Occupied(Exception):
    """The keys are somebody else's, and are not overwritten."""


@dataclass(frozen=True, slots=True)
class MirrorState:
    """What the mirror's own key says of what stands in the target."""

    term: int = 0
    cursor: int | None = None  # the last event that is in it; None: it is not whole
    database: str = ""
    queues: tuple[str, ...] = ()
    written_s: float = 0.0
    rebuilt_s: float = 0.0
    asked: str = ""  # "rebuild" or "replace", by a person


@dataclass(slots=True)
class Changes:
    """One batch: whole keys, keys that go, and what listeners hear: {stream: [(milliseconds, number or None, fields)]}."""

    keys: dict[str, Key] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    events: dict[str, list[tuple[int, int | None, dict[str, str]]]] = field(default_factory=dict)


class Target:
    """A Redis or Valkey database, and the prefix under which the queues stand."""

    def __init__(self, url: str, prefix: str, database: str) -> None:
        self.prefix = prefix
        self.database = database  # whose mirror this is
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
        """What stands there; None when nothing of this mirror does."""
        return _state(self.client.hgetall(self._own))

    def ask(self, what: str) -> None:
        """Ask whoever writes the mirror for a rebuild."""
        self.client.hset(self._own, "asked", what)

    def begin(self, term: int, queues: Iterable[str]) -> None:
        """Let no worker of an earlier term write any more, and clear the way for events of these queues.

        What is another queue's is left as it is. Raises: Superseded; redis.RedisError.
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
        """Take keys away and run commands in one go (in several above PORTION), unless a worker of a later term has written.

        Raises: Superseded; Occupied, unless it takes over what is another queue's; redis.RedisError.
        """
        for text in _portions(commands):
            refused, by = self._fenced(keys=[self._own], args=[term, self.database, int(takes_over), text, *gone])
            gone = ()
            if refused == "occupied":
                raise self._occupied(by)
            if refused == "superseded":
                raise Superseded(f"a worker of term {by} writes it; this one is of term {term}")

    # --- writing ---

    def apply(self, changes: Changes, *, cursor: int, queues: Sequence[str], term: int) -> None:
        """Write one batch, whole or not at all. Raises: Superseded; redis.RedisError."""
        said = self._say(cursor=cursor, queues="\n".join(queues), written_s=repr(time.time()))
        self._run(term, [*_put(changes.keys), *self._told(changes), said], gone=changes.gone)

    def put(self, keys: Mapping[str, Key], *, term: int) -> None:
        """Write keys that no list names yet. Raises: as `apply`."""
        self._run(term, _put(keys))

    def _told(self, changes: Changes) -> Iterator[Command]:
        for stream, entries in changes.events.items():
            last_ms = self._newest_ms(stream)
            for at_ms, number, fields in entries:
                # What no event of the queue tells has no number: it takes a millisecond of its own.
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
        """Put everything there anew and take away what does not belong; returns how many keys there are.

        Up to SWAP_LIMIT keys are staged and swapped in one transaction, so that no reader sees a part.
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
                commands = [("HDEL", self._own, "cursor"), *_put(part)]  # from here on it is not whole
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
        """Take away what stands in place of a stream of events, and a stream whose newest entry is of the future."""
        for queue in queues:
            stream = f"{self.prefix}:{queue}:events"
            kind = str(self.client.type(stream))
            if kind == "stream" and self._newest_ms(stream) <= (time.time() + FUTURE_S) * 1000:
                continue
            if kind != "none":
                self.client.unlink(stream)
                self._last_ms.pop(stream, None)

    def _occupied(self, database: str) -> Occupied:
        return Occupied(f"the queues of {database} are mirrored there under {self.prefix!r}; give [mirror] another prefix or url")

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
                        f"{self.prefix}:{queue} is a queue of {version}, whose jobs a mirror would replace; give [mirror] "
                        "another prefix or url, or run `gpuqueue mirror rebuild --replace` to delete them"
                    )

    # --- reading back, to compare ---

    def names(self, queues: Iterable[str]) -> Iterator[str]:
        """The keys that stand under queues, but for their events."""
        bases = tuple(f"{self.prefix}:{queue}:" for queue in queues)
        streams = {f"{base}events" for base in bases}
        for name in self.client.scan_iter(match=f"{_escaped(self.prefix)}:*", count=1000):
            if name.startswith(bases) and name not in streams:
                yield name

    def listed(self, queue: str) -> set[int]:
        """The jobs that stand in the lists of a queue; what somebody else wrote there is left to the next comparison."""
        lists = {f"{self.prefix}:{queue}:{suffix}" for suffix in LISTS}
        found = self.read(sorted(lists))
        return {int(id_) for key in found.values() if key.kind in ("list", "zset") for id_ in key.value if id_.isdecimal()}

    def read(self, names: Sequence[str]) -> dict[str, Key]:
        """What stands under keys; those that do not exist are left out."""
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
    """The commands that make keys what they are to be, whatever they are."""
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
    """Commands as JSON lists of about PORTION characters."""
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
    """A text that a pattern of Redis takes as it is."""
    return "".join(f"\\{character}" if character in "*?[]^-\\" else character for character in text)
