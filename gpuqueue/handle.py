"""Owns a client's handle on one job: its state, waiting for its result, its output, cancel and retry; runs nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpuqueue.domain import FINISHED, WAITING, Explanation, Job, JobErrorRecord, State
from gpuqueue.errors import JobCancelled, JobError, JobExpired, JobFailed, ServiceUnavailable
from gpuqueue.policies.availability import REFUSAL
from gpuqueue.store.bell import POLL_S, Listener

if TYPE_CHECKING:
    from gpuqueue.queue import GPUQueue
    from gpuqueue.store.queries import Ending

logger = logging.getLogger("gpuqueue")
WORKER_CHECK_S = 0.5  # how long a caller waits before it asks whether anybody serves the queue


class Piece(str):
    """A piece of a job's output; `attempt_lease` grows when the output begins anew in another attempt."""

    attempt_lease: int = 0


class JobHandle:
    """One job as a client sees it. Its attributes are as of the last `refresh()`; they are read at first use."""

    __slots__ = ("_gq", "_record", "id")

    def __init__(self, gq: GPUQueue, job_id: int, record: Job | None = None) -> None:
        self.id = job_id
        self._gq = gq
        self._record = record

    @property
    def record(self) -> Job:
        """Everything the row says, as a frozen Job."""
        if self._record is None:
            self.refresh()
        assert self._record is not None
        return self._record

    @property
    def state(self) -> State:
        return self.record.state

    @property
    def attempt(self) -> int:
        return self.record.attempt

    @property
    def queue(self) -> str:
        return self.record.queue

    @property
    def task(self) -> str:
        return self.record.task

    @property
    def error(self) -> JobErrorRecord | None:
        return self.record.error

    @property
    def enqueued_at(self) -> datetime:
        return self.record.enqueued_at

    @property
    def started_at(self) -> datetime | None:
        return self.record.started_at

    @property
    def finished_at(self) -> datetime | None:
        return self.record.finished_at

    def refresh(self) -> JobHandle:
        """Read the job again and return this handle. Raises: UnknownJob when it was pruned."""
        self._record = self._gq.store.get_job(self.id)
        return self

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the job to finish and return what it returned.

        Raises: JobFailed, JobCancelled, JobExpired, ServiceUnavailable; TimeoutError after `timeout_s`, which leaves the
        job alone; UnknownJob.
        """
        ending = self._wait(timeout_s)
        if ending.state is State.COMPLETED:
            return json.loads(ending.result or "null")
        raise self._error_of(ending)

    def stream(self, timeout_s: float | None = None) -> Iterator[Piece]:
        """Yield the job's output as it comes, also after it has finished; ends when the job completes.

        An attempt that is tried again begins its output anew: its pieces carry another `attempt_lease`.
        Raises: as `result`, at the end.
        """
        store = self._gq.store
        give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
        seen = 0
        with Listener.for_job(store.runtime_dir, self.id) as listener:
            watch = _Watch(self._gq, self.id)
            while True:
                with store.reading() as connection:
                    from gpuqueue.store import queries

                    # The state is read first: what is written before the end is then surely seen.
                    ending = queries.get_ending(connection, self.id)
                    rows = queries.chunks_after(connection, self.id, seen)
                for seq, lease, text in rows:
                    piece = Piece(text)
                    piece.attempt_lease = lease
                    seen = seq
                    yield piece
                if ending.state in FINISHED:
                    self._record = None
                    if ending.state is not State.COMPLETED:
                        raise self._error_of(ending)
                    return
                watch.look(ending)
                listener.wait(self._patience(give_up_s))

    def cancel(self) -> bool:
        """Stop the job: at once while it waits, from any process while it runs; returns False when it had finished."""
        before = self._gq.store.cancel(self.id, now_us=self._gq.now_us())
        self._record = None
        return before not in FINISHED

    def retry(self) -> JobHandle:
        """Make a discarded, cancelled or postponed job available again. Raises: StateError for any other."""
        self._gq.store.retry(self.id, now_us=self._gq.now_us())
        self._record = None
        return self

    def explain(self) -> Explanation:
        """Say why the job is where it is."""
        return self._gq.explain(self.id)

    def __repr__(self) -> str:
        known = f" {self._record.state} in {self._record.queue}" if self._record else ""
        return f"<job {self.id}{known}>"

    def _wait(self, timeout_s: float | None) -> Ending:
        store = self._gq.store
        ending = store.get_ending(self.id)
        if ending.state not in FINISHED:
            give_up_s = None if timeout_s is None else time.monotonic() + timeout_s
            with Listener.for_job(store.runtime_dir, self.id) as listener:
                watch = _Watch(self._gq, self.id)
                while (ending := store.get_ending(self.id)).state not in FINISHED:
                    watch.look(ending)
                    listener.wait(self._patience(give_up_s))
        self._record = None
        return ending

    def _patience(self, give_up_s: float | None) -> float:
        if give_up_s is None:
            return POLL_S
        left_s = give_up_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(f"{self.explain()}\n(the job goes on; cancel it with job.cancel())")
        return min(left_s, POLL_S)

    def _error_of(self, ending: Ending) -> JobError:
        error: JobErrorRecord = ending.error or JobErrorRecord(str(ending.state), str(ending.state))
        if ending.state is State.CANCELLED:
            return JobCancelled(f"job {self.id} was cancelled", job_id=self.id, code="cancelled")
        if error.code == "unavailable":
            return ServiceUnavailable(error.message, job_id=self.id, code=error.code)
        kind = JobExpired if error.code == "expired" else JobFailed
        return kind(f"job {self.id}: {error.message}", job_id=self.id, code=error.code)


class _Watch:
    """Looks after a job that somebody waits for: expires it in time, and notices when nobody will run it."""

    def __init__(self, gq: GPUQueue, job_id: int) -> None:
        self._gq = gq
        self._job_id = job_id
        self._ask_at_s = time.monotonic() + WORKER_CHECK_S
        self._told = False

    def look(self, ending: Ending) -> None:
        if ending.state not in WAITING:
            return
        now_us = self._gq.now_us()
        if ending.expires_at_us is not None and ending.expires_at_us <= now_us:
            self._gq.store.move_due(now_us=now_us)
        if time.monotonic() < self._ask_at_s:
            return
        self._ask_at_s = time.monotonic() + WORKER_CHECK_S
        if self._gq.is_served(ending.queue):
            return
        if self._gq.queue_settings(ending.queue).when_unavailable == "reject":
            self._gq.store.refuse_one(self._job_id, message=REFUSAL, now_us=now_us)
        elif not self._told:
            self._told = True
            logger.warning(
                "job %d waits: no worker serves queue %r. Start one: %s",
                self._job_id,
                ending.queue,
                self._gq.worker_command(ending.queue),
            )
