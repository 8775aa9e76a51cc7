"""Lets a program mirror the queue elsewhere: reads the events with its own cursor, and many jobs in one snapshot.

Loaded on first use. Changes nothing except the cursor.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from gpuqueue.contract.reads import Reads
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import FINISHED, Entry, Event, Record, State
from gpuqueue.domain.numbers import whole_number
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.units import from_us, to_us

if TYPE_CHECKING:
    from gpuqueue.store.store import Store


class Follower:
    """Reads every event with its own cursor, which the database keeps under its name.

    While a follower is registered, every transition of a job is written as an event, in the same transaction. `is_new` says
    that this call registered it; it gets no earlier events. A follower that leaves an event unread for 30 days is removed.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self.is_new = store.followers.add(name)

    def read(self, *, limit: int = 500) -> list[Event]:
        """Return the next events in order, without moving the cursor. Raises: UsageError if the follower was removed."""
        with self._store.reading() as reads:
            found = reads.events(self.name, limit=whole_number(limit, what="limit"))
        if found is None:
            raise self._forgotten()
        return found

    @property
    def position(self) -> int:
        """The last event before the cursor, 0 for none. Raises: UsageError if the follower was removed."""
        with self._store.reading() as reads:
            found = reads.follower_position(self.name)
        if found is None:
            raise self._forgotten()
        return found

    def advance(self, event_id: int) -> None:
        """Move the cursor past this event, permanently."""
        self._store.followers.advance(self.name, whole_number(event_id, what="event_id"))

    def forget(self) -> None:
        """Remove the follower; without any, events are no longer written for every transition."""
        self._store.followers.remove(self.name)

    def _forgotten(self) -> UsageError:
        return UsageError(f"follower {self.name!r} is no longer registered; create it again with follow()")


class Reader:
    """Many jobs in one snapshot; created by `GPUQueue.read()`, and valid only inside its `with`."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    @property
    def last_event_id(self) -> int:
        """The newest event in the snapshot, 0 for none."""
        return self._reads.last_event_id()

    def followers(self) -> dict[str, datetime | None]:
        """Return the time of each follower's first unread event: {name: time}, None when it has read all."""
        return self._reads.followers()

    def queues(self) -> list[str]:
        """Return the names of the queues, sorted."""
        return sorted(self._reads.queue_names())

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the jobs: {queue: {state: number}}, leaving out zeros."""
        return self._reads.counts()

    def entries(self, queue: str, *states: State | str, limit: int | None = None, newest_first: bool = False) -> list[Entry]:
        """Return a queue's jobs in one state, or in several with the same order, in that order: cheap for thousands.

        Available jobs are in the order they will run, running ones by start, scheduled and retryable ones by due time,
        completed, cancelled and discarded ones by finish; `newest_first` reverses it.
        Raises: UsageError for an unknown state, and for states without a common order.
        """
        found = _states(states)
        if limit is not None:
            whole_number(limit, what="limit")
        return self._reads.entries(queue, found, limit=limit, newest_first=newest_first)

    def finished_by_minute(self, queue: str, *states: State | str, since: datetime) -> dict[datetime, int]:
        """Count a queue's jobs that finished in each minute since a time and are still kept: {minute: number}."""
        found = self._reads.finished_by_minute(queue, _states(states), since_us=to_us(since))
        return {from_us(minute * 60_000_000): count for minute, count in found.items()}

    def records(self, ids: Iterable[int]) -> dict[int, Record]:
        """Return jobs with their results and log lines: {id: record}; pruned ones are left out."""
        return self._reads.records([whole_number(item, what="a job's id") for item in ids])


_TOGETHER = ({State.AVAILABLE}, {State.RUNNING}, {State.SCHEDULED, State.RETRYABLE}, set(FINISHED))


def _states(given: tuple[State | str, ...]) -> list[State]:
    for state in given:
        if state not in list(State):
            raise UsageError(f"unknown state {safe_repr(state)}. States: {', '.join(State)}")
    found = [State(state) for state in given]
    if not any(found and set(found) <= group for group in _TOGETHER):
        given_states = ", ".join(found) or "none"
        raise UsageError(f"these states have no common order: {given_states}. Read them one at a time")
    return found
