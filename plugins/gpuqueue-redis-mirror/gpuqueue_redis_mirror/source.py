"""Reads the queue for the mirror: the keys of queues and jobs, all as of one time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from gpuqueue import GPUQueue, Reader, State
from gpuqueue_redis_mirror.layout import DELAYED, FAILED, MINUTES, Key, QueueRows, job_keys, queue_keys

BODIES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Kept:
    """How many finished jobs of a queue are shown; the newest are kept."""

    completed: int
    failed: int


class Source:
    """The queue as the mirror shows it."""

    def __init__(self, gq: GPUQueue, kept: Kept) -> None:
        self._gq = gq
        self._kept = kept

    def held(self) -> dict[str, bool]:
        """Return for each queue whether it is held now."""
        return {name: bool(holds) for name, holds in self._gq.holds().items()}

    def queue(self, reader: Reader, name: str, *, is_held: bool, counts: Mapping[str, int]) -> QueueRows:
        """Read the rows behind a queue's keys."""
        since = self._gq.now() - timedelta(minutes=MINUTES)
        return QueueRows(
            waiting=reader.entries(name, State.AVAILABLE),
            running=reader.entries(name, State.RUNNING),
            delayed=reader.entries(name, *DELAYED),
            completed=reader.entries(name, State.COMPLETED, newest_first=True, limit=self._kept.completed),
            failed=reader.entries(name, *FAILED, newest_first=True, limit=self._kept.failed),
            is_held=is_held,
            concurrency=self._gq.queue_settings(name).concurrency,
            counts=counts,
            completed_by_minute=reader.finished_by_minute(name, State.COMPLETED, since=since),
            failed_by_minute=reader.finished_by_minute(name, *FAILED, since=since),
        )

    def everything(self, reader: Reader, prefix: str, held: Mapping[str, bool]) -> Iterator[tuple[str, Key]]:
        """Yield every key that should exist, as (name, key): queue by queue, jobs before the lists that name them."""
        counts = reader.counts()
        for name in reader.queues():
            rows = self.queue(reader, name, is_held=held.get(name, False), counts=counts.get(name, {}))
            for suffix, key in chain(self._bodies(reader, rows.ids), queue_keys(rows).items()):
                if key:
                    yield f"{prefix}:{name}:{suffix}", key

    def _bodies(self, reader: Reader, ids: Iterable[int]) -> Iterator[tuple[str, Key]]:
        wanted = sorted(ids)
        for start in range(0, len(wanted), BODIES_AT_ONCE):
            for record in reader.records(wanted[start : start + BODIES_AT_ONCE]).values():
                yield from job_keys(record).items()
