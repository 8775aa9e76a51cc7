"""Owns what a program that copies the queue elsewhere reads: the events with a cursor of its own, and many jobs of one moment.

Loaded when it is first asked for. Changes nothing but the cursor.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from gpuqueue.domain import Event, Record, State
from gpuqueue.errors import UsageError
from gpuqueue.store import Store, queries


class Follower:
    """Reads every event with a cursor of its own, which the database keeps under its name.

    While one is registered every transition of a job is written as an event, in the transaction that makes it. `is_new`
    tells that this call registered it: what happened before is not told. A follower that leaves an event unread for 30
    days is forgotten.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self.is_new = store.add_follower(name)

    def read(self, *, limit: int = 500) -> list[Event]:
        """Return the next events, in their order, without passing them. Raises: UsageError when it was forgotten."""
        with self._store.reading() as connection:
            found = queries.events_after(connection, self.name, limit=limit)
        if found is None:
            raise UsageError(f"the follower {self.name!r} is not registered any more; make it anew with follow()")
        return found

    def advance(self, event_id: int) -> None:
        """Pass the events up to this one, for good."""
        self._store.advance_follower(self.name, event_id)

    def forget(self) -> None:
        """End the following; with the last follower, events are no longer written for everything."""
        self._store.remove_follower(self.name)


class Reader:
    """Many jobs as they are at one moment; made by `GPUQueue.read()`, and good inside its `with` only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @property
    def last_event_id(self) -> int:
        """The newest event that has happened by this moment, 0 for none."""
        return queries.last_event_id(self._connection)

    def queues(self) -> list[str]:
        """Return the names of the queues, sorted."""
        return sorted(queries.queue_names(self._connection))

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the jobs: {queue: {state: number}}, leaving out zeros."""
        return queries.counts(self._connection)

    def ids(self, queue: str, state: State | str, *, limit: int | None = None, newest_first: bool = False) -> list[int]:
        """Return the ids of a queue's jobs in one state, in the order of the queue.

        Available ones as they will run, running ones by their start, scheduled and retryable ones by their due time, finished
        ones by their finish; `newest_first` turns the order around. Raises: UsageError for a state that does not exist.
        """
        if state not in list(State):
            raise UsageError(f"there is no state {state!r}. States: {', '.join(State)}")
        return queries.ordered_ids(self._connection, queue, State(state), limit=limit, newest_first=newest_first)

    def records(self, ids: Iterable[int]) -> dict[int, Record]:
        """Return jobs with their results and log lines: {id: record}; those that are gone are left out."""
        return queries.records(self._connection, ids)
