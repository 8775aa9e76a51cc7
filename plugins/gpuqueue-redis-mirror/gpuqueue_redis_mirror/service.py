"""Keeps the mirror up to date: follows the queue's events, writes what they change, and rebuilds when that is not enough.

The queue never waits for the mirror: it runs in its own thread, in one worker, and reads the queue like any other reader.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import redis

from gpuqueue import Event, GPUQueue, Reader, Record
from gpuqueue.plugins import ServiceContext, shown_url
from gpuqueue_redis_mirror.compare import differences
from gpuqueue_redis_mirror.layout import ROOM, Key, entries, job_keys, milliseconds, queue_keys
from gpuqueue_redis_mirror.settings import Settings
from gpuqueue_redis_mirror.source import Kept, Source
from gpuqueue_redis_mirror.target import Changes, MirrorState, Occupied, Superseded, Target
from gpuqueue_redis_mirror.workers import WorkerConnections, client_names

FOLLOWER = "mirror"
POLL_S = 0.1
LOOK_S = 1.0  # between two checks of what no event reports: holds, workers, the target's own key
NOTE_S = 5.0
CHECK_S = 60.0  # between two comparisons of everything
WRITTEN_AT_ONCE = 1_000
BODIES_AT_ONCE = 100
LONGEST_LAG_S = 0.8  # the longest that the mirror waits between batches, so that its writing does not slow the jobs
BATCH = 5_000  # events
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
# Events that change the keys of a queue; the others change only the job's keys.
MOVES = {"job_enqueued", "job_promoted", "attempt_started", "attempt_finished", "job_finished", "job_removed", "lease_rescued"}
logger = logging.getLogger("gpuqueue.mirror")


def run(settings: Settings, context: ServiceContext) -> None:
    """Mirror until the worker stops; if the target fails, wait and try again."""
    target = Target(settings.url, settings.prefix, identity(context.gq))
    workers = WorkerConnections(settings.url)
    mirroring = Mirroring(context.gq, target, workers, settings, term=context.term)
    pause_s, told = FIRST_PAUSE_S, ""
    try:
        while not context.stopping.is_set():
            try:
                mirroring.follow(context)
                pause_s, told = FIRST_PAUSE_S, ""
            except (redis.RedisError, OSError, Occupied, Superseded) as error:
                workers.close()
                said = str(error) or type(error).__name__
                if said != told:
                    logger.warning("the mirror at %s is waiting: %s", shown_url(settings.url), said)
                    told = said
                context.note({**mirroring.status(), "state": "waiting", "error": said})
                context.stopping.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    finally:
        mirroring.close()


def identity(gq: GPUQueue) -> str:
    """Return a name for this database file that differs from every other's, even that of a file at the same path later."""
    with gq.read():  # creates the file if it does not exist
        return f"{socket.gethostname()}:{gq.database}:{gq.database.stat().st_ino}"


@dataclass(slots=True)
class _Changes(Changes):
    """What is written together, and what the mirror shows afterwards: {queue: …}."""

    bodies: dict[str, Key] = field(default_factory=dict)
    shown: dict[str, set[int]] = field(default_factory=dict)
    held: dict[str, bool] = field(default_factory=dict)
    waited: dict[str, bool] = field(default_factory=dict)


class Mirroring:
    """Writes the mirror for one worker, in one term."""

    def __init__(self, gq: GPUQueue, target: Target, workers: WorkerConnections, settings: Settings, *, term: int) -> None:
        self._gq = gq
        self.target = target
        self._workers = workers
        self._settings = settings
        self._source = Source(gq, Kept(settings.keep_completed, settings.keep_failed))
        self._term = term
        self.follower = gq.follow(FOLLOWER)
        self._is_new = self.follower.is_new
        self._held: dict[str, bool] = {}
        self._shown: dict[str, set[int]] = {}
        self._waited: dict[str, bool] = {}
        self._metrics_minute = 0
        self._noted_s = self._checked_s = float("-inf")

    # --- the loop ---

    def follow(self, context: ServiceContext) -> None:
        """Write new events until the worker stops. Raises: redis.RedisError; Occupied; Superseded."""
        self.begin()
        self._shown = {}
        self._noted_s = self._checked_s = look_at_s = float("-inf")
        while True:
            is_last = context.stopping.is_set()
            if time.monotonic() >= look_at_s:
                self.look()
                look_at_s = time.monotonic() + LOOK_S
            began_s = time.monotonic()
            written = self.write_batch()
            took_s = time.monotonic() - began_s
            self._note(context)
            if is_last and written < BATCH:
                return
            if written < BATCH and time.monotonic() - self._checked_s >= CHECK_S:
                self._checked_s = time.monotonic()
                self.mend()
            # Jobs come first: writing uses a tenth of the time while events keep coming, and half of it to catch up.
            context.stopping.wait(took_s if written == BATCH else min(max(POLL_S, 9 * took_s), LONGEST_LAG_S))

    def begin(self) -> None:
        """Lock out writers of earlier terms, and prepare the event streams. Raises: as `follow`."""
        with self._gq.read() as reader:
            queues = reader.queues()
        self.target.begin(self._term, queues)

    def close(self) -> None:
        self._workers.close()
        self.target.close()

    def look(self) -> None:
        """Update what no event reports: rebuild requests, holds and workers."""
        state = self.target.state()
        why = self._why_rebuild(state)
        if why:
            logger.info("rebuilding the mirror: %s", why)
            self.rebuild(replace=state is not None and state.asked == "replace")
        self._refresh_queues()
        with self._gq.read() as reader:
            queues = reader.queues()
        self._workers.show(client_names(self._settings.prefix, self._gq.workers(), queues))

    def _why_rebuild(self, state: MirrorState | None) -> str:
        if state is None:
            return "the server has no mirror"
        if self._is_new:
            return "earlier events are unknown"
        if state.asked:
            return "requested by a person"
        if state.cursor is None:
            return "the mirror is incomplete"
        if state.database != self.target.database:
            return f"the mirror belongs to {state.database or 'no database'}"
        if state.cursor < self.follower.position:
            return "the mirror is older than what was written, so the server lost data"
        return ""

    def rebuild(self, *, replace: bool = False) -> int:
        """Rewrite the whole mirror; returns how many keys it has. Raises: Occupied; Superseded; redis.RedisError."""
        with self._gq.read() as reader:
            cursor, queues = reader.last_event_id, reader.queues()
            count = self.target.rebuild(
                self._source.everything(reader, self._settings.prefix, self._source.held()),
                cursor=cursor,
                queues=queues,
                term=self._term,
                replace=replace,
            )
        self._shown = {}
        self._checked_s = time.monotonic()
        self.follower.advance(cursor)
        self._is_new = False
        return count

    def _refresh_queues(self) -> None:
        """Write queues whose hold changed, new and removed queues, and each minute the metrics of all queues."""
        held = self._source.held()
        minute = int(time.time() // 60)
        changed = {name for name, is_held in held.items() if self._held.get(name) is not is_held}
        gone = self._shown.keys() - held.keys()
        if minute != self._metrics_minute:
            changed |= held.keys()
        if not changed and not gone:
            return
        with self._gq.read() as reader:
            changes = self._project(reader, changed, {})
            for name in gone:
                changes.gone.update(self.target.names([name]))
            self._write(changes, cursor=self.follower.position, queues=reader.queues())
        for name in gone:
            self._shown.pop(name, None)
        self._metrics_minute = minute

    def mend(self) -> int:
        """Repair keys that another program changed; returns how many. Raises: as `follow`."""
        with self._gq.read() as reader:
            is_level = reader.last_event_id == self.follower.position
            queues = reader.queues()
            self.target.mend_streams(queues)
            found = differences(reader, self._source, self.target, self._held)
            count = 0
            while part := list(islice(found, WRITTEN_AT_ONCE)):
                changes = Changes(
                    keys={item.name: item.expected for item in part if item.expected is not None},
                    gone={item.name for item in part if item.expected is None},
                )
                self.target.apply(changes, cursor=self.follower.position, queues=queues, term=self._term)
                count += len(part)
        self._shown = {}
        if count and is_level:  # otherwise they may just not have been written yet
            logger.warning("repaired %d keys of the mirror that did not match the queue", count)
        return count

    # --- a batch ---

    def write_batch(self) -> int:
        """Write the changes of the next events, then advance past them; returns how many events."""
        events = self.follower.read(limit=BATCH)
        if not events:
            return 0
        touched = {event.job_id for event in events if event.job_id is not None}
        with self._gq.read() as reader:
            records = reader.records(touched)
            queues = reader.queues()
            changes = self._project(reader, {event.queue for event in events if event.name in MOVES and event.queue}, records)
            for event in events:
                record = records.get(event.job_id) if event.job_id is not None else None
                name = event.queue or (record.job.queue if record is not None else "")
                if name in queues:
                    self._hear(changes, name, event, entries(event, record))
        self._write(changes, cursor=events[-1].id, queues=queues)
        self.follower.advance(events[-1].id)
        return len(events)

    def _project(self, reader: Reader, names: set[str], touched: dict[int, Record]) -> _Changes:
        """Return what the keys of these queues must become, and those of jobs that changed, appeared or disappeared."""
        changes = _Changes()
        counts, held = reader.counts(), self._source.held()
        records = dict(touched)
        for name in names & set(reader.queues()):
            is_held = held.get(name, False)
            rows = self._source.queue(reader, name, is_held=is_held, counts=counts.get(name, {}))
            changes.keys.update(self._named(name, queue_keys(rows)))
            before, now = self._shown_before(name), rows.ids
            # A finished job is shown again when a newer one disappears, and a job may be listed before its event is read.
            records |= reader.records(now - before - touched.keys())
            for id_ in before - now:
                changes.gone.update(self._body_names(name, id_))
            changes.shown[name], changes.held[name] = now, is_held
            if self._held.get(name, is_held) is not is_held:
                told = {"event": "paused" if is_held else "resumed"}
                changes.events.setdefault(self._stream(name), []).append((milliseconds(self._gq.now()), None, told))
            if not rows.waiting and self._waited.get(name):
                told = {"event": "drained"}
                changes.events.setdefault(self._stream(name), []).append((milliseconds(self._gq.now()), None, told))
            changes.waited[name] = bool(rows.waiting)
        for id_, record in records.items():
            name = record.job.queue
            shown_ids = changes.shown.get(name)
            if shown_ids is None or id_ in shown_ids:
                changes.bodies.update(self._named(name, job_keys(record)))
        return changes

    def _write(self, changes: _Changes, *, cursor: int, queues: Sequence[str]) -> None:
        """Write the changes, bodies first: no job is listed before it can be read."""
        bodies = iter(changes.bodies.items())
        while part := dict(islice(bodies, BODIES_AT_ONCE)):
            self.target.put(part, term=self._term)
            time.sleep(0)  # yields to the threads that run jobs
        self.target.apply(changes, cursor=cursor, queues=queues, term=self._term)
        self._shown |= changes.shown
        self._held |= changes.held
        self._waited |= changes.waited

    def _shown_before(self, queue: str) -> set[int]:
        """Return the jobs of a queue that the mirror lists, which another worker may have written."""
        if queue not in self._shown:
            self._shown[queue] = self.target.listed(queue)
        return self._shown[queue]

    def _named(self, queue: str, keys: dict[str, Key]) -> dict[str, Key]:
        return {f"{self._settings.prefix}:{queue}:{suffix}": key for suffix, key in keys.items()}

    def _body_names(self, queue: str, id_: int) -> Sequence[str]:
        base = f"{self._settings.prefix}:{queue}:{id_}"
        return base, f"{base}:logs"

    def _stream(self, queue: str) -> str:
        return f"{self._settings.prefix}:{queue}:events"

    def _hear(self, changes: Changes, queue: str, event: Event, told: list[dict[str, str]]) -> None:
        for number, fields in enumerate(told):
            entry = (milliseconds(event.at), event.id * ROOM + number, fields)
            changes.events.setdefault(self._stream(queue), []).append(entry)

    # --- its status ---

    def status(self) -> dict[str, object]:
        """Return the mirror's public status: where it is, and how far behind the queue."""
        unread = self.follower.read(limit=1)
        with self._gq.read() as reader:
            behind = max(0, reader.last_event_id - self.follower.position)
        lag_s = (self._gq.now() - unread[0].at).total_seconds() if unread else 0.0
        return {
            "state": "following",
            "url": shown_url(self._settings.url),
            "prefix": self._settings.prefix,
            "behind": behind,
            "lag_s": round(max(0.0, lag_s), 3),
            "error": None,
        }

    def _note(self, context: ServiceContext) -> None:
        if time.monotonic() - self._noted_s >= NOTE_S:
            self._noted_s = time.monotonic()
            context.note(self.status())
