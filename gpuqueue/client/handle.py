"""The client's handle on one job: its state, result and output, cancel and retry; runs nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Hashable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from gpuqueue.client.async_twins import in_thread, twin
from gpuqueue.contract.current_job import current_lease, published_waits
from gpuqueue.domain.errors import (
    REFUSAL,
    JobCancelled,
    JobError,
    JobExpired,
    JobFailed,
    ServiceUnavailable,
    UnknownJob,
    WouldDeadlock,
)
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.job import FINISHED, WAITING, Job, JobErrorRecord, JobStatus, LogLine, State
from gpuqueue.domain.numbers import wait_s, whole_number
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.units import from_us, to_us
from gpuqueue.store.wakeups import POLL_S, Listener

if TYPE_CHECKING:
    from gpuqueue.store.store import Store

logger = logging.getLogger("gpuqueue")
WORKER_CHECK_S = 0.5  # how long a caller waits before it checks that a worker serves the queue


class HasJobs(Protocol):
    """The parts of a queue object that a handle uses."""

    @property
    def store(self) -> Store: ...

    def now_us(self) -> int: ...

    def explain(self, job_id: int, /) -> Explanation: ...

    def circle_of(self, waiter_id: int, awaited_id: int, /) -> str | None: ...

    def is_served(self, queue: str, /) -> bool: ...

    def queue_settings(self, name: str, /) -> QueueSettings: ...

    def worker_command(self, queue: str, /) -> str: ...


class Piece(str):
    """A piece of a job's output; `attempt_lease` grows when the output starts again in another attempt.

    `seq` is its position in the job's whole output.
    """

    attempt_lease: int = 0
    seq: int = 0


class JobHandle:
    """One job as a client sees it. Its attributes are read at first use, and again by `refresh()`."""

    __slots__ = ("_gq", "_record", "_unsure_since_us", "id")

    def __init__(self, gq: HasJobs, job_id: int, record: Job | None = None, unsure_since_us: int | None = None) -> None:
        self.id = job_id
        self._gq = gq
        self._record = record
        # Enqueue time, if in a caller's transaction: after a rollback another job may get its id.
        self._unsure_since_us = unsure_since_us

    @property
    def record(self) -> Job:
        """The whole row, as a frozen Job."""
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
    def progress(self) -> float | None:
        """The progress that the job reported, from 0 to 1."""
        return self.record.progress

    @property
    def error(self) -> JobErrorRecord | None:
        return self.record.error

    @property
    def enqueued_at(self) -> datetime:
        if self._record is None and self._unsure_since_us is not None:
            return from_us(self._unsure_since_us)  # the row is not visible before its transaction is committed
        return self.record.enqueued_at

    @property
    def started_at(self) -> datetime | None:
        return self.record.started_at

    @property
    def finished_at(self) -> datetime | None:
        return self.record.finished_at

    def refresh(self) -> JobHandle:
        """Read the job again and return this handle. Raises: UnknownJob if it was pruned."""
        with self._gq.store.reading() as reads:
            record = reads.job(self.id)
        if self._unsure_since_us is not None and to_us(record.enqueued_at) != self._unsure_since_us:
            raise UnknownJob(self.id)
        self._unsure_since_us = None
        self._record = record
        return self

    def _confirm(self) -> None:
        """Check that this is still the job that was stored. Raises: UnknownJob if its transaction was rolled back."""
        if self._unsure_since_us is not None:
            self.refresh()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the job to finish and return its result.

        Raises: JobFailed, JobCancelled, JobExpired, ServiceUnavailable; TimeoutError after `timeout_s`, without
        cancelling the job; WouldDeadlock in a task whose end the job itself needs, for example if no other thread is left to
        run it; UnknownJob.
        """
        self._confirm()
        with self._gq.store.reading() as reads:
            status = reads.status(self.id)
        if not status.is_finished:
            with Watch(self, timeout_s) as watch:
                while not (status := watch.look()).is_finished:
                    watch.wait()
        return self._value_of(status)

    async def aresult(self, timeout_s: float | None = None) -> Any:
        """The async twin of `result`; any number can wait without a thread each."""
        with Watch(self, timeout_s) as watch:
            while not (status := await in_thread(watch.look)).is_finished:
                while not watch.has_news(await watch.listener.await_ring(watch.patience_s)):
                    pass
        return self._value_of(status)

    def stream(self, timeout_s: float | None = None) -> Iterator[Piece]:
        """Yield the job's output as it is written, or after it has finished; ends when the job completes.

        Another attempt starts the output again: its pieces have another `attempt_lease`.
        Raises: as `result`, at the end.
        """
        with Watch(self, timeout_s) as watch:
            while True:
                pieces, status = watch.look_for_output()
                yield from pieces
                if status.is_finished:
                    break
                watch.wait()
        self._value_of(status)

    async def astream(self, timeout_s: float | None = None) -> AsyncIterator[Piece]:
        """The async twin of `stream`."""
        with Watch(self, timeout_s) as watch:
            while True:
                pieces, status = await in_thread(watch.look_for_output)
                for piece in pieces:
                    yield piece
                if status.is_finished:
                    break
                while not watch.has_news(await watch.listener.await_ring(watch.patience_s)):
                    pass
        self._value_of(status)

    def watch(self, timeout_s: float | None = None) -> Iterator[Job]:
        """Yield the job now, and again whenever it or its output may have changed; the last one yielded is finished.

        It only reads: a job that no worker serves keeps waiting, also where `result` would have it refused.
        Raises: TimeoutError after `timeout_s`, without cancelling the job; UnknownJob.
        """
        with Watch(self, timeout_s, only_looks=True) as watch:
            while True:
                job = watch.look_at_job()
                yield job
                if job.state in FINISHED:
                    return
                watch.wait()

    async def awatch(self, timeout_s: float | None = None) -> AsyncIterator[Job]:
        """The async twin of `watch`."""
        with Watch(self, timeout_s, only_looks=True) as watch:
            while True:
                job = await in_thread(watch.look_at_job)
                yield job
                if job.state in FINISHED:
                    return
                while not watch.has_news(await watch.listener.await_ring(watch.patience_s)):
                    pass

    def follow_logs(self, *, after: int = 0, timeout_s: float | None = None) -> Iterator[LogLine]:
        """Yield the job's log lines, earlier ones first and new ones as they come, until the job ends in any way.

        Raises: as `watch`.
        """
        for _ in self.watch(timeout_s):
            for line in self.logs(after=after):
                after = line.seq
                yield line

    async def afollow_logs(self, *, after: int = 0, timeout_s: float | None = None) -> AsyncIterator[LogLine]:
        """The async twin of `follow_logs`."""
        async for _ in self.awatch(timeout_s):
            for line in await self.alogs(after=after):
                after = line.seq
                yield line

    def logs(self, *, after: int = 0) -> list[LogLine]:
        """Return the job's log lines with a `seq` greater than `after`."""
        whole_number(after, what="after")
        self._confirm()
        with self._gq.store.reading() as reads:
            return reads.logs(self.id, after)

    def cancel(self) -> bool:
        """Stop the job: at once if it is waiting, from any process if it is running; returns False if it had finished."""
        self._confirm()
        before = self._gq.store.jobs.cancel(self.id, now_us=self._gq.now_us())
        self._record = None
        return before not in FINISHED

    def retry(self) -> JobHandle:
        """Make a discarded, cancelled or postponed job available again. Raises: StateError for any other."""
        self._confirm()
        self._gq.store.jobs.retry(self.id, now_us=self._gq.now_us())
        self._record = None
        return self

    def explain(self) -> Explanation:
        """Explain the job's state."""
        self._confirm()
        return self._gq.explain(self.id)

    arefresh = twin(refresh)
    alogs = twin(logs)
    acancel = twin(cancel)
    aretry = twin(retry)
    aexplain = twin(explain)

    def __repr__(self) -> str:
        known = f" {self._record.state} in {self._record.queue}" if self._record else ""
        return f"<job {self.id}{known}>"

    def _value_of(self, status: JobStatus) -> Any:
        """Return a finished job's result. Raises: the error for how it ended."""
        self._record = None
        if status.state is State.COMPLETED:
            return json.loads(status.result or "null")
        raise self._error_of(status)

    def _error_of(self, status: JobStatus) -> JobError:
        error: JobErrorRecord = status.error or JobErrorRecord(str(status.state), str(status.state))
        if status.state is State.CANCELLED:
            return JobCancelled(f"job {self.id} was cancelled", job_id=self.id, code="cancelled")
        if error.code == "unavailable":
            return ServiceUnavailable(error.message, job_id=self.id, code=error.code)
        kind = JobExpired if error.code == "expired" else JobFailed
        return kind(f"job {self.id}: {error.message}", job_id=self.id, code=error.code)


class Watch:
    """Watches one job for a waiting caller: reads it, expires it in time, and notices when no worker will run it.

    Callers that block and callers that await share it; only how they wait for a wakeup differs. Output is read from the first
    piece with a `seq` greater than `after`.
    """

    def __init__(self, handle: JobHandle, timeout_s: float | None = None, *, only_looks: bool = False, after: int = 0) -> None:
        handle._confirm()
        self._handle = handle
        self._only_looks = only_looks
        self._gq = handle._gq
        self._ends_s = None if timeout_s is None else time.monotonic() + wait_s(timeout_s, what="timeout_s")
        self._look_again_s = time.monotonic() + WORKER_CHECK_S  # when to check again without a wakeup
        self._waits = True  # the job waits for an attempt
        self.version: Hashable = None  # of the file, at the last check
        self._told = False
        self._seen = after  # the last output piece read
        self._lease = current_lease()
        self._publish = published_waits()  # None outside a worker's thread
        self._waits_in_task = False
        self._ask_again_s = self._look_again_s  # when to check whether the task waits in vain
        self.listener = Listener.for_job(self._gq.store.runtime_dir, handle.id)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self._go_on()

    def wait(self) -> None:
        """Wait until there may be news; other processes see that the calling task waits."""
        if self._publish is not None and self._lease is not None:
            self._publish(self._lease.job_id, self._handle.id)
            self._waits_in_task = True
        while not self.has_news(self.listener.wait(self.patience_s)):
            pass

    def _go_on(self) -> None:
        if self._waits_in_task and self._publish is not None and self._lease is not None:
            self._publish(self._lease.job_id, 0)
        self._waits_in_task = False

    def look(self) -> JobStatus:
        """Read the job's status. Raises: TimeoutError when the caller's time is up."""
        return self.look_for_output(with_output=False)[1]

    def look_at_job(self) -> Job:
        """Read the job. Raises: TimeoutError."""
        self.look()
        self._go_on()
        return self._handle.refresh().record

    def look_for_output(self, *, with_output: bool = True) -> tuple[list[Piece], JobStatus]:
        """Read the job's status, and its output since the last call. Raises: TimeoutError."""
        store = self._gq.store
        self.version = store.changed()
        with store.reading() as reads:
            # The state is read first, so output written before the end is not missed.
            status = reads.status(self._handle.id)
            rows = reads.chunks(self._handle.id, self._seen) if with_output else ()
        pieces = []
        for seq, lease, text in rows:
            piece = Piece(text)
            piece.attempt_lease = lease
            piece.seq = seq
            pieces.append(piece)
            self._seen = seq
        self._waits = status.state in WAITING
        if self._waits:
            self._look_after(status)
        if status.is_finished or pieces:
            self._go_on()
        elif self._waits_in_task:
            self._refuse_circle()
        if not status.is_finished and not pieces and self._ends_s is not None and time.monotonic() >= self._ends_s:
            raise TimeoutError(f"{self._handle.explain()}\n(the job was not cancelled; cancel it with job.cancel())")
        return pieces, status

    @property
    def patience_s(self) -> float:
        """How long to wait for a wakeup."""
        now_s = time.monotonic()
        patience_s = POLL_S if self._ends_s is None else min(POLL_S, self._ends_s - now_s)
        if self._waits:  # a running job needs no checks
            patience_s = min(patience_s, self._look_again_s - now_s)
        if self._waits_in_task:
            patience_s = min(patience_s, self._ask_again_s - now_s)
        return max(0.0, patience_s)

    def has_news(self, rang: bool) -> bool:
        """Say, after a wait, whether to check again: a wakeup came, it is time, or the file was changed."""
        return rang or self.patience_s == 0 or self._gq.store.changed() != self.version

    def _refuse_circle(self) -> None:
        """Raises: WouldDeadlock if the job cannot end before the task that waits for it."""
        if self._lease is None or time.monotonic() < self._ask_again_s:
            return
        self._ask_again_s = time.monotonic() + WORKER_CHECK_S
        problem = self._gq.circle_of(self._lease.job_id, self._handle.id)
        if problem is not None:
            raise WouldDeadlock(problem, job_id=self._lease.job_id, awaited_id=self._handle.id)

    def _look_after(self, status: JobStatus) -> None:
        """Stand in for a missing worker: expire, refuse or warn."""
        now_us = self._gq.now_us()
        if status.expires_at_us is not None and status.expires_at_us <= now_us:
            self._gq.store.jobs.move_due(now_us=now_us)
        if time.monotonic() < self._look_again_s:
            return
        self._look_again_s = time.monotonic() + WORKER_CHECK_S
        if self._gq.is_served(status.queue):
            return
        if not self._only_looks and self._gq.queue_settings(status.queue).when_unavailable == "reject":
            self._gq.store.jobs.refuse_one(self._handle.id, message=REFUSAL, now_us=now_us)
        elif not self._told:
            self._told = True
            from gpuqueue.logs import tell  # json and formatters, which few waits need

            command = self._gq.worker_command(status.queue)
            message = f"job {self._handle.id} is waiting: no worker serves queue {status.queue!r}. Start one: {command}"
            tell(logger, logging.WARNING, "queue_unserved", message, job=self._handle.id, queue=status.queue)
