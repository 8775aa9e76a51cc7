"""Defines the database schema: tables and indexes, equal to what the migrations build; runs no statement.

Times are INTEGER microseconds since 1970-01-01 UTC in columns named `_at`. A partial index serves a statement only when
the statement spells the index's condition literally, so states are literals in every hot statement.

Ids of jobs and events are never reused: a late write for a pruned job must not hit a new one. SQLite gives a new row
the highest id plus one, so pruning keeps the newest row of each table; AUTOINCREMENT would write one more page a job.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, MetaData, PrimaryKeyConstraint, Table, Text, text

metadata = MetaData()

# Holds what is updated often, and nothing large: an update rewrites the whole row.
jobs = Table(
    "jobs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("enqueued_at", Integer, nullable=False),
    Column("scheduled_at", Integer, nullable=False),
    Column("started_at", Integer),
    Column("finished_at", Integer),
    Column("expires_at", Integer),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer, nullable=False, server_default="1"),
    Column("lease", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("timeout_s", Float),
    Column("worker_id", Text),
    Column("cancel_requested", Integer, nullable=False, server_default="0"),
    Column("waiting_for", Text),
    # The job's device requirements, once a worker has sized it; the class is demand_bytes // 64 MiB.
    Column("demand_model", Text, nullable=False, server_default=""),
    Column("demand_class", Integer, nullable=False, server_default="0"),
    Column("demand_bytes", Integer, nullable=False, server_default="0"),
    # The reservation: set by the claim, cleared by the verified clean-up, whatever the state is meanwhile.
    Column("device", Text),
    Column("reserved_bytes", Integer, nullable=False, server_default="0"),
    # JSON up to INLINE_BYTES, NULL if it is in payloads.
    Column("arguments", Text),
    Column("result", Text),
    Column("error", Text),
    Column("tags", Text),
    # Reported by the running attempt; the claim clears it.
    Column("progress", Float),
    Column("progress_note", Text),
    # Device requirements set when the job was enqueued; they override the policies' answers.
    Column("wanted_bytes", Integer),
    Column("wanted_device", Text),
    Column("fallback", Text),  # JSON: models to use instead of its own
    # Preemption: whether the attempt on a device can be preempted, and the lease that was asked to stop.
    Column("preemptible", Integer, nullable=False, server_default="0"),
    Column("preempt_lease", Integer),
    Column("preemptions", Integer, nullable=False, server_default="0"),
    Column("output_tokens", Integer, nullable=False, server_default="0"),  # of the attempt on a device, and of what it continued
    Column("continues", Integer, nullable=False, server_default="0"),  # a later attempt continues this one's output
    Column("first_output_at", Integer),  # of the attempt on a device
    # Since when jobs behind it start before it, because their model is loaded.
    Column("passed_at", Integer),
    Column("unloaded_lease", Integer),  # the lease whose attempt's model was unloaded, while its memory is not back yet
    Index(
        "jobs_claim",
        "queue",
        "demand_model",
        "demand_class",
        text("priority DESC"),
        "scheduled_at",
        "id",
        sqlite_where=text("state = 'available'"),
    ),
    Index("jobs_due", "scheduled_at", "queue", sqlite_where=text("state IN ('scheduled', 'retryable')")),
    Index("jobs_running", "queue", "worker_id", sqlite_where=text("state = 'running'")),
    Index("jobs_reserved", "device", sqlite_where=text("device IS NOT NULL")),
    Index("jobs_expiring", "expires_at", sqlite_where=text("expires_at IS NOT NULL AND finished_at IS NULL")),
    Index("jobs_finished", "state", "finished_at", sqlite_where=text("finished_at IS NOT NULL")),
    Index("jobs_unsuccessful", "state", "id", sqlite_where=text("state IN ('cancelled', 'discarded')")),
    Index("jobs_waiting_for", "waiting_for", sqlite_where=text("waiting_for IS NOT NULL")),
)

payloads = Table(
    "payloads",
    metadata,
    Column("job_id", Integer, nullable=False),
    Column("kind", Text, nullable=False),  # "arguments" or "result"
    Column("content", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "kind"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("job_id", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("lease", Integer, nullable=False),
    Column("content", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "seq"),
    sqlite_with_rowid=False,
)

logs = Table(
    "logs",
    metadata,
    Column("job_id", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("lease", Integer, nullable=False),
    Column("at", Integer, nullable=False),
    Column("message", Text, nullable=False),
    PrimaryKeyConstraint("job_id", "seq"),
    sqlite_with_rowid=False,
)

# Failures and interruptions; a completed attempt is recorded in the job's own row.
attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Integer, nullable=False),
    Column("lease", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("outcome", Text, nullable=False),  # retried snoozed discarded cancelled released crashed
    Column("started_at", Integer),
    Column("finished_at", Integer, nullable=False),
    Column("worker_id", Text),
    Column("device", Text),
    Column("error", Text),
    Column("numbers", Text),  # JSON: what the attempt had produced so far
    PrimaryKeyConstraint("job_id", "lease"),
    sqlite_with_rowid=False,
)

# Values learned from jobs: sizes, rates and durations, each a running mean or the highest seen.
estimates = Table(
    "estimates",
    metadata,
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("value", Float, nullable=False),
    Column("count", Integer, nullable=False),
    Column("at", Integer, nullable=False),
    PrimaryKeyConstraint("kind", "key"),
    sqlite_with_rowid=False,
)

queues = Table(
    "queues",
    metadata,
    Column("name", Text, primary_key=True),
    Column("paused_at", Integer),
    Column("paused_until", Integer),
    Column("paused_by", Text),
    Column("pause_reason", Text),
    Column("holds", Text),  # JSON: the last holds that a worker saw, for the events queue_held and queue_released
    # How many jobs its rate let start at `rate_at`; the number grows as time passes.
    Column("rate_level", Float),
    Column("rate_at", Integer),
)

# Finished jobs that are still stored, per queue: counting a million rows would take 200 ms.
counters = Table(
    "counters",
    metadata,
    Column("queue", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("count", Integer, nullable=False),
    PrimaryKeyConstraint("queue", "state"),
    sqlite_with_rowid=False,
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", Text),  # JSON list, NULL for all
    Column("started_at", Integer, nullable=False),
    Column("expires_at", Integer, nullable=False),  # the end of the lease of everything it runs, by its own clock
    Column("digest", Text, nullable=False),
    Column("runtime_dir", Text, nullable=False),  # where its wakeup socket and its liveness file are
    Column("holds", Text),  # JSON: holds by its own plugins, for processes that do not have them
    Column("parts", Text),  # JSON: how its parts are, as of the last heartbeat
    Column("lease_us", Integer, nullable=False, server_default="30000000"),  # how long it may be silent
)

# The folder that all processes of a user on a host use for sockets and liveness files, whichever each would choose by itself.
runtime_bases = Table(
    "runtime_bases",
    metadata,
    Column("host", Text, nullable=False),
    Column("uid", Integer, nullable=False),
    Column("path", Text, nullable=False),
    PrimaryKeyConstraint("host", "uid"),
    sqlite_with_rowid=False,
)

devices = Table(
    "devices",
    metadata,
    Column("name", Text, primary_key=True),
    Column("reading", Text),  # JSON: the last reading and its time
    Column("residents", Text),  # JSON: the loaded models, as last seen
    Column("model", Text),  # the last model that was not loaded when a job for it was claimed, and when that was
    Column("model_since", Integer),
    Column("thrown", Text),  # JSON: the preempted work of the last hour that starts again: [[at, microseconds]]
    Column("restarted", Text),  # JSON: what preempted work that goes on had taken to start, lately: [[at, microseconds]]
)

backends = Table(
    "backends",
    metadata,
    Column("name", Text, primary_key=True),
    Column("available", Integer, nullable=False, server_default="1"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("since", Integer),
    Column("retry_at", Integer),
    Column("checked_at", Integer),
    Column("error", Text),
    Column("models", Text),  # JSON: {name: bytes on its disk}
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("job_id", Integer),
    Column("queue", Text),
    Column("data", Text),
    Index("events_job", "job_id", sqlite_where=text("job_id IS NOT NULL")),
    Index("events_at", "at"),
)

# Readers of the events; while there is one, triggers write an event for every transition of a job.
followers = Table(
    "followers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("last_event_id", Integer, nullable=False),
)

# Singleton services: one worker runs each alongside its jobs. The row is its lease; `term` increases with each takeover.
services = Table(
    "services",
    metadata,
    Column("name", Text, primary_key=True),
    Column("worker_id", Text),
    Column("term", Integer, nullable=False),
    Column("since", Integer),
    Column("expires_at", Integer),
    Column("status", Text),  # JSON, as last reported by the service
    Column("noted_at", Integer),
)

# One row: the settings of queues, devices, models and backends that all workers share.
configuration = Table(
    "configuration",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("settings", Text, nullable=False),
    Column("accepted_at", Integer, nullable=False),
)
