"""Owns what a program that copies the queue elsewhere reads: the events with a cursor of its own, and many jobs of one moment.

Loaded when it is first asked for. Changes nothing but the cursor.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from gpuqueue.contract.reads import Reads
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.job import FINISHED, Entry, Event, Record, State
from gpuqueue.domain.units import from_us, to_us

if TYPE_CHECKING:
    from gpuqueue.store.store import Store


class Follower:
    """Reads every event with a cursor of its own, which the database keeps under its name.

    While one is registered every transition of a job is written as an event, in the transaction that makes it. `is_new`
    tells that this call registered it: what happened before is not told. A follower that leaves an event unread for 30
    days is forgotten.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self.name = name
        self.is_new = store.followers.add(name)

    def read(self, *, limit: int = 500) -> list[Event]:
        """Return the next events, in their order, without passing them. Raises: UsageError when it was forgotten."""
        with self._store.reading() as reads:
            found = reads.events(self.name, limit=limit)
        if found is None:
            raise self._forgotten()
        return found

    @property
    def position(self) -> int:
        """The last event that it passed, 0 for none. Raises: UsageError when it was forgotten."""
        with self._store.reading() as reads:
            found = reads.follower_position(self.name)
        if found is None:
            raise self._forgotten()
        return found

    def advance(self, event_id: int) -> None:
        """Pass the events up to this one, for good."""
        self._store.followers.advance(self.name, event_id)

    def forget(self) -> None:
        """End the following; with the last follower, events are no longer written for everything."""
        self._store.followers.remove(self.name)

    def _forgotten(self) -> UsageError:
        return UsageError(f"the follower {self.name!r} is not registered any more; make it anew with follow()")


class Reader:
    """Many jobs as they are at one moment; made by `GPUQueue.read()`, and good inside its `with` only."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    @property
    def last_event_id(self) -> int:
        """The newest event that has happened by this moment, 0 for none."""
        return self._reads.last_event_id()

    def followers(self) -> dict[str, datetime | None]:
        """Return when the first event happened that each follower has not passed: {name: moment}, None where it passed all."""
        return self._reads.followers()

    def queues(self) -> list[str]:
        """Return the names of the queues, sorted."""
        return sorted(self._reads.queue_names())

    def counts(self) -> dict[str, dict[str, int]]:
        """Count the jobs: {queue: {state: number}}, leaving out zeros."""
        return self._reads.counts()

    def entries(self, queue: str, *states: State | str, limit: int | None = None, newest_first: bool = False) -> list[Entry]:
        """Return a queue's jobs in a state, or in several that have one order, in the order of the queue: cheap for thousands.

        Available ones as they will run, running ones by their start, scheduled and retryable ones by their due time, completed,
        cancelled and discarded ones by their finish; `newest_first` turns the order around.
        Raises: UsageError for a state that does not exist, and for several without an order in common.
        """
        found = _states(states)
        return self._reads.entries(queue, found, limit=limit, newest_first=newest_first)

    def finished_by_minute(self, queue: str, *states: State | str, since: datetime) -> dict[datetime, int]:
        """Count the jobs of a queue that finished in each minute since a moment, of those that are kept: {minute: number}."""
        found = self._reads.finished_by_minute(queue, _states(states), since_us=to_us(since))
        return {from_us(minute * 60_000_000): count for minute, count in found.items()}

    def records(self, ids: Iterable[int]) -> dict[int, Record]:
        """Return jobs with their results and log lines: {id: record}; those that are gone are left out."""
        return self._reads.records(ids)


_TOGETHER = ({State.AVAILABLE}, {State.RUNNING}, {State.SCHEDULED, State.RETRYABLE}, set(FINISHED))


def _states(given: tuple[State | str, ...]) -> list[State]:
    for state in given:
        if state not in list(State):
            raise UsageError(f"there is no state {state!r}. States: {', '.join(State)}")
    found = [State(state) for state in given]
    if not any(found and set(found) <= group for group in _TOGETHER):
        raise UsageError(
            f"jobs that are {' or '.join(found) or 'in no state'} have no order in common; ask for one after the other"
        )
    return found
