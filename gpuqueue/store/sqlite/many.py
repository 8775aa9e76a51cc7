"""Owns changes of many jobs: some hundred rows a transaction, so that nobody waits long behind them; decides nothing.

Each change is safe beside workers: a job's state is looked at again under the write lock. One that is interrupted has
changed a part of the jobs, each of them wholly; repeated, it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from gpuqueue.domain.job import Cancellation, State
from gpuqueue.store.sqlite import jobs, queries
from gpuqueue.store.sqlite.jobs import SCAN_LIMIT

if TYPE_CHECKING:
    from gpuqueue.store.store import Store

LONGEST_REST_S = 0.05


def retry_failed(store: Store, queue: str | None, *, now_us: int) -> int:
    """Make the jobs that are discarded now, of one queue or of all, available again; returns how many."""
    with store.reading() as connection:
        ids = queries.discarded_ids(connection, queue)
    retried = 0
    for some in _slices(ids):
        retried += store.write(partial(jobs.retry_discarded, job_ids=some, now_us=now_us))
        store.bell.ring_workers()
    return retried


def cancel_all(store: Store, queue: str, *, now_us: int) -> Cancellation:
    """Cancel every job of a queue that waits, and ask those that run to stop; jobs that are stored meanwhile stay.

    A worker may start one of them meanwhile, or give it back: what becomes of it is decided when its turn comes.
    """
    with store.snapshot() as connection:
        ids = queries.unfinished_ids(connection, queue)
    cancelled_count = asked_count = 0
    for some in _slices(ids):
        cancelled, asked = store.write(partial(jobs.cancel_several, job_ids=some, now_us=now_us))
        cancelled_count += len(cancelled)
        asked_count += len(asked)
        store.bell.ring_waiters([*cancelled, *asked])
        if asked:
            store.bell.ring_workers()
    return Cancellation(cancelled_count, asked_count)


def prune(store: Store, state: State, *, before_us: int) -> int:
    """Delete all finished jobs of a state that finished before a time; returns how many."""
    pruned = 0
    while True:
        began_s = time.monotonic()
        count = store.prune(state, before_us=before_us, limit=SCAN_LIMIT)
        pruned += count
        if count < SCAN_LIMIT:
            return pruned
        _rest(began_s)


def _slices(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield the ids in slices, and rest between them."""
    for start in range(0, len(ids), SCAN_LIMIT):
        began_s = time.monotonic()
        yield ids[start : start + SCAN_LIMIT]
        if start + SCAN_LIMIT < len(ids):
            _rest(began_s)


def _rest(began_s: float) -> None:
    # Who asks for the lock again at once mostly gets it: others would wait until all is done.
    time.sleep(min(time.monotonic() - began_s, LONGEST_REST_S))
