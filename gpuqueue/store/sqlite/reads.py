"""Lists all reads and the function behind each; contains no statement itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuqueue.store.sqlite import claims, current, following, outcomes, queries, search
from gpuqueue.store.sqlite import estimates as estimate_rows
from gpuqueue.store.sqlite import events as event_rows
from gpuqueue.store.sqlite import services as service_rows
from gpuqueue.store.sqlite import workers as worker_rows

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements


class SQLiteReads:
    """Reads over one connection.

    The functions below take a connection as their first argument and use only its `execute`. This object has `execute` too, so
    they work as its methods, without wrappers that repeat their parameters.
    """

    __slots__ = ("execute",)

    def __init__(self, connection: Statements) -> None:
        self.execute = connection.execute

    # jobs
    job = queries.get_job
    jobs = queries.list_jobs
    headlines = queries.headlines
    find_by_task = search.by_task
    status = queries.get_status
    timeline = queries.timeline
    chunks = queries.chunks_after
    logs = queries.logs_after
    partial_output = queries.partial_output
    counts = queries.counts
    newest_enqueued_us = queries.newest_enqueued_us
    # waiting and running work
    has_available = claims.has_available
    suspects = claims.suspects
    queue_load = queries.queue_load
    demand_classes = claims.demand_classes
    sized = claims.sized
    work_ahead = queries.work_ahead
    first_waiting = current.first_waiting
    last_waiting = queries.last_waiting
    next_due = current.next_due
    next_due_us = queries.next_due_us
    running_jobs = queries.running_jobs
    running_attempts = current.running_attempts
    stop_requests = queries.stop_requests
    unsized = claims.unsized
    candidates = claims.candidates
    discarded_ids = queries.discarded_ids
    unfinished_ids = queries.unfinished_ids
    prunable_count = queries.prunable_count
    # queues, workers, devices, backends
    queue_names = queries.queue_names
    pauses = queries.pauses
    noted_reasons = queries.noted_reasons
    rate_levels = queries.rate_levels
    configuration = queries.configuration
    workers = queries.worker_rows
    runtime_base = worker_rows.runtime_base
    abandoned_workers = outcomes.abandoned_workers
    reservations = outcomes.reservations
    sightings = queries.device_sightings
    backends = queries.backends
    estimates = estimate_rows.read
    services = service_rows.services
    # for programs that follow the queue
    events = event_rows.after
    follower_position = following.follower_position
    followers = following.followers
    last_event_id = following.last_event_id
    entries = following.entries
    finished_by_minute = following.finished_by_minute
    records = following.records
