"""Defines the reads of an engine: the part of its contract that changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from gpuqueue.domain.explanation import RunningJob, Work
from gpuqueue.domain.job import Entry, Event, Found, Job, JobStatus, LogLine, PartialOutput, Record, RunningAttempt, State
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import Backend, Estimate, Pause, Reservation, ServiceInfo, Sighting, WorkerRow


class Reads(Protocol):
    """All reads; those within one `snapshot` are as of one moment. {…} describes a dict."""

    def job(self, job_id: int, /) -> Job:
        """Raises: UnknownJob."""

    def jobs(
        self, *, queue: str | None, state: State | None, limit: int, after: int | None = None, before: int | None = None
    ) -> list[Job]:
        """Jobs, newest first: those after the id `after`, or the ones just before the id `before`."""

    def headlines(self, *, limit: int) -> list[tuple[int, State, str, str]]:
        """The newest jobs in brief: [(id, state, queue, task)]."""

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
        """Jobs with a string in their task's name, ignoring case: the ones next to an id, or the newest.

        One call examines at most LOOKED_AT jobs.
        """

    def status(self, job_id: int, /) -> JobStatus:
        """A job's status, with its result if it has one. Raises: UnknownJob."""

    def timeline(self, job_id: int, /) -> list[dict[str, Any]]:
        """A job's interrupted attempts, oldest first: attempt, lease, outcome, started_at, finished_at, worker, device, error."""

    def chunks(self, job_id: int, seq: int, /) -> list[tuple[int, int, str]]:
        """A job's output after a sequence number: [(seq, lease, text)]."""

    def logs(self, job_id: int, seq: int, /) -> list[LogLine]:
        """A job's log lines after a sequence number."""

    def partial_output(self, job_id: int, /) -> PartialOutput | None:
        """The output of a job's latest attempt if it was interrupted through no fault of its own; else None."""

    def counts(self) -> dict[str, dict[str, int]]:
        """{queue: {state: number}}, without zeros; finished jobs while they are stored."""

    def newest_enqueued_us(self) -> int | None:
        """The latest enqueue time among the newest jobs, of any process."""

    def suspects(self, queue: str, /, *, limit: int) -> list[tuple[int, str]]:
        """The first available suspects of a queue without a device: [(id, task)], in the order of a claim."""

    def has_available(self, queue: str, /) -> bool: ...

    def queue_load(self, queue: QueueSettings, /, *, largest_bytes: int) -> tuple[int, int]:
        """(running, waiting) of one queue; waiting counts available jobs that fit a device, up to 100."""

    def demand_classes(self, queue: str, /, *, largest_bytes: int) -> list[tuple[str, int]]:
        """The (model, class) pairs of a queue's available jobs that fit a device; ("", 0): demand not known yet."""

    def sized(self, model: str | None, /) -> list[int]:
        """The ids of available jobs with a known demand, of one model or of all."""

    def work_ahead(self, queue: str, before: Job | None, /, *, largest_bytes: int) -> list[Work]:
        """A queue's available jobs ahead of a job of this or another queue, or all of them, counted up to FAR.

        Where jobs need several models, those behind it are counted too.
        """

    def first_waiting(self, queue: str, /, *, largest_bytes: int) -> Job | None:
        """The first available job; one that fits no device only if there is no other."""

    def last_waiting(self, queue: str, /, *, largest_bytes: int) -> Job | None:
        """The last available job that fits a device."""

    def next_due(self, queue: str, /) -> datetime | None:
        """The time when a queue's next scheduled or postponed job is due."""

    def next_due_us(self) -> int | None:
        """The time when the next scheduled, retryable or expiring job of any queue is due."""

    def running_jobs(self, queue: str, /) -> list[RunningJob]:
        """Running jobs of a queue, at most 100."""

    def running_attempts(self, queue: str, /, *, limit: int) -> list[RunningAttempt]: ...

    def stop_requests(self, worker_id: str, /) -> list[tuple[int, int, bool]]:
        """The jobs that a worker must stop: [(job, lease, whether cancelled; else preempted)]."""

    def unsized(self, queue: str, /, *, limit: int) -> list[Job]:
        """Available jobs of a GPU queue that have no known demand yet."""

    def candidates(self, queue: str, /, *, room_bytes: int) -> list[Job]:
        """The first job of each demand class of a GPU queue that fits into `room_bytes`."""

    def discarded_ids(self, queue: str | None, /) -> list[int]:
        """The discarded jobs of one queue, or of all, oldest first."""

    def unfinished_ids(self, queue: str, /) -> list[int]:
        """A queue's running and waiting jobs, running ones first."""

    def prunable_count(self, state: State, /, *, before_us: int) -> int: ...

    def queue_names(self) -> set[str]: ...

    def pauses(self, *, now_us: int) -> dict[str, Pause]:
        """The manual pauses in force: {queue: pause}."""

    def noted_reasons(self) -> dict[str, tuple[str, ...]]:
        """The reasons that a worker noted when it last saw a queue held: {queue: reasons}."""

    def rate_levels(self) -> dict[str, tuple[float, datetime]]:
        """How many jobs each queue's rate let start at a given time: {queue: (level, time)}."""

    def configuration(self) -> Mapping[str, Any] | None:
        """The settings that the workers agreed on, None before the first worker."""

    def runtime_base(self, host: str, uid: int, /) -> str | None:
        """The folder that a user's processes on a host use for their sockets, None before the first."""

    def workers(self, *, now_us: int) -> list[WorkerRow]:
        """The workers; `alive` means only that the lease has not expired."""

    def abandoned_workers(self) -> list[str]:
        """Workers that no longer have a row but still hold running jobs or devices."""

    def reservations(self) -> list[Reservation]:
        """Every device reservation, whether its attempt is running or waiting for its clean-up."""

    def sightings(self) -> dict[str, Sighting]:
        """The last known state of each device: {device: sighting}."""

    def backends(self) -> dict[str, Backend]:
        """Each backend that was ever contacted; the caller must add its url."""

    def estimates(self) -> dict[tuple[str, str], Estimate]:
        """{(kind, key): estimate}."""

    def services(self, *, now_us: int) -> list[ServiceInfo]:
        """Every service that a worker ever ran, by name."""

    def events(self, follower: str, /, *, limit: int) -> list[Event] | None:
        """The events that a follower has not passed yet; None if it is not registered."""

    def follower_position(self, follower: str, /) -> int | None:
        """The last event that a follower passed; None if it is not registered."""

    def followers(self) -> dict[str, datetime | None]:
        """The time of the first event that each follower has not passed: {name: time or None}."""

    def last_event_id(self) -> int:
        """The newest event, 0 for none."""

    def entries(
        self, queue: str, states: Iterable[State], /, *, limit: int | None = None, newest_first: bool = False
    ) -> list[Entry]:
        """A queue's jobs in states that share an order: by when they run, started, are due or finished."""

    def finished_by_minute(self, queue: str, states: Iterable[State], /, *, since_us: int) -> dict[int, int]:
        """The number of a queue's jobs that finished in each minute: {minutes since 1970: number}."""

    def records(self, ids: Iterable[int], /) -> dict[int, Record]:
        """Jobs with their results and log lines: {id: record}; deleted jobs are left out."""
