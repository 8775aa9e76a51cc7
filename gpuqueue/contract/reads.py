"""What can be read from an engine: the part of its contract that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from gpuqueue.domain.explanation import RunningJob, Work
from gpuqueue.domain.job import Entry, Event, Found, Job, JobStatus, LogLine, PartialOutput, Record, RunningAttempt, State
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import Backend, Estimate, Pause, Reservation, ServiceInfo, Sighting, WorkerRow


class Reads(Protocol):
    """What can be read; all of one `snapshot` belongs to one moment. {…} describes a dict."""

    def job(self, job_id: int, /) -> Job:
        """Raises: UnknownJob."""

    def jobs(
        self, *, queue: str | None, state: State | None, limit: int, after: int | None = None, before: int | None = None
    ) -> list[Job]:
        """The newest jobs first: those that follow the id `after`, or those that lead to the id `before`."""

    def headlines(self, *, limit: int) -> list[tuple[int, State, str, str]]:
        """The newest jobs in short: [(id, state, queue, task)]."""

    def find_by_task(
        self,
        text: str,
        /,
        *,
        queue: str | None = None,
        state: State | None = None,
        limit: int,
        after: int | None = None,
        before: int | None = None,
    ) -> Found:
        """The jobs next to an id, else the newest, whose task's name has a text in it, in any case of its letters.

        At most LOOKED_AT are looked at in one call.
        """

    def status(self, job_id: int, /) -> JobStatus:
        """How a job stands, with its result when it has one. Raises: UnknownJob."""

    def timeline(self, job_id: int, /) -> list[dict[str, Any]]:
        """A job's interrupted attempts, oldest first: attempt, lease, outcome, started_at, finished_at, worker, device, error."""

    def chunks(self, job_id: int, seq: int, /) -> list[tuple[int, int, str]]:
        """A job's output after a sequence number: [(seq, lease, text)]."""

    def logs(self, job_id: int, seq: int, /) -> list[LogLine]:
        """A job's log lines after a sequence number."""

    def partial_output(self, job_id: int, /) -> PartialOutput | None:
        """What a job had written when its latest attempt was interrupted through no doing of its own."""

    def counts(self) -> dict[str, dict[str, int]]:
        """{queue: {state: number}}, without zeros; finished jobs as long as they are kept."""

    def newest_enqueued_us(self) -> int | None:
        """The latest time at which one of the last jobs was enqueued, by whichever process."""

    def has_available(self, queue: str, /) -> bool: ...

    def queue_load(self, queue: QueueSettings, /, *, largest_bytes: int) -> tuple[int, int]:
        """(running, waiting) of one queue; waiting are available jobs that a device could take, 100 at most."""

    def demand_classes(self, queue: str, /, *, largest_bytes: int) -> list[tuple[str, int]]:
        """The (model, class) pairs of a queue's available jobs that a device could take; ("", 0): demand not known yet."""

    def work_ahead(self, queue: str, before: Job | None, /, *, largest_bytes: int) -> list[Work]:
        """A queue's available jobs that come before a job of this or another queue, or all, counted up to FAR."""

    def first_waiting(self, queue: str, /, *, largest_bytes: int) -> Job | None:
        """The available job that comes first; one that no device could take only where there is no other."""

    def last_waiting(self, queue: str, /, *, largest_bytes: int) -> Job | None:
        """The available job that comes last, of those that a device could take."""

    def next_due(self, queue: str, /) -> datetime | None:
        """When the next scheduled or postponed job of a queue is due."""

    def next_due_us(self) -> int | None:
        """When the next scheduled, retryable or expiring job of all is due."""

    def running_jobs(self, queue: str, /) -> list[RunningJob]:
        """Running jobs of a queue, 100 at most."""

    def running_attempts(self, queue: str, /, *, limit: int) -> list[RunningAttempt]: ...

    def stop_requests(self, worker_id: str, /) -> list[tuple[int, int, bool]]:
        """What a worker runs and must stop: [(job, lease, whether a person cancelled it; else it is to make room)]."""

    def unsized(self, queue: str, /, *, limit: int) -> list[Job]:
        """Available jobs of a GPU queue whose demand is not known yet."""

    def candidates(self, queue: str, /, *, room_bytes: int) -> list[Job]:
        """The first job of each demand class of a GPU queue that fits into the room."""

    def discarded_ids(self, queue: str | None, /) -> list[int]:
        """The discarded jobs of one queue, or of all, the oldest first."""

    def unfinished_ids(self, queue: str, /) -> list[int]:
        """A queue's running and waiting jobs, those that run first."""

    def prunable_count(self, state: State, /, *, before_us: int) -> int: ...

    def queue_names(self) -> set[str]: ...

    def pauses(self, *, now_us: int) -> dict[str, Pause]:
        """The manual pauses in force: {queue: pause}."""

    def noted_reasons(self) -> dict[str, tuple[str, ...]]:
        """The reasons that a worker noted when it last saw a queue held: {queue: reasons}."""

    def rate_levels(self) -> dict[str, tuple[float, datetime]]:
        """How many jobs each queue's rate let begin at a moment: {queue: (level, moment)}."""

    def configuration(self) -> Mapping[str, Any] | None:
        """The settings that the workers agreed on, None before the first worker."""

    def workers(self, *, now_us: int) -> list[WorkerRow]:
        """The workers; `alive` means only that the lease has not ended."""

    def abandoned_workers(self) -> list[str]:
        """Workers that have no row any more, but still hold running jobs or devices."""

    def reservations(self) -> list[Reservation]:
        """Every device reservation, running or waiting for its clean-up."""

    def sightings(self) -> dict[str, Sighting]:
        """What each device was last seen to be: {device: sighting}."""

    def backends(self) -> dict[str, Backend]:
        """Each backend that was ever asked; its url is for the caller to add."""

    def estimates(self) -> dict[tuple[str, str], Estimate]:
        """{(kind, key): estimate}."""

    def services(self, *, now_us: int) -> list[ServiceInfo]:
        """Every service that a worker ever ran, by name."""

    def events(self, follower: str, /, *, limit: int) -> list[Event] | None:
        """The events that a follower has not passed yet; None when it is not registered."""

    def follower_position(self, follower: str, /) -> int | None:
        """The last event that a follower passed; None when it is not registered."""

    def followers(self) -> dict[str, datetime | None]:
        """When the first event happened that each follower has not passed: {name: moment or None}."""

    def last_event_id(self) -> int:
        """The newest event, 0 for none."""

    def entries(
        self, queue: str, states: Iterable[State], /, *, limit: int | None = None, newest_first: bool = False
    ) -> list[Entry]:
        """A queue's jobs in states that have one order, that in which they run, started, are due or finished."""

    def finished_by_minute(self, queue: str, states: Iterable[State], /, *, since_us: int) -> dict[int, int]:
        """The jobs of a queue that finished in each minute: {minutes since 1970: number}."""

    def records(self, ids: Iterable[int], /) -> dict[int, Record]:
        """Jobs with their results and log lines: {id: record}; those that are gone are left out."""
