"""Logs a worker's events, one line each, with their text, level and fields; decides nothing.

Jobs without a device may number thousands a second: their starts and completions are logged at level debug.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from datetime import datetime
from logging import DEBUG, ERROR, INFO, WARNING
from typing import Any

from gpuqueue.domain.answers import Hold, Preemption
from gpuqueue.domain.errors import describe
from gpuqueue.domain.job import Lease, State
from gpuqueue.domain.moments import iso
from gpuqueue.domain.outcomes import Completed, Crashed, Ended, Outcome, Postponed, Rescued
from gpuqueue.domain.safe_text import safe_trace
from gpuqueue.domain.units import counted, format_duration, format_size, from_us
from gpuqueue.logs import tell

LOADED_S = 0.01  # a shorter "load" means that the model was loaded already (1-2 ms)
logger = logging.getLogger("gpuqueue.worker")


class WorkerLog:
    """The log of one worker."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id

    def _say(self, level: int, event: str, message: str, of: Lease | None = None, /, **fields: Any) -> None:
        # The task of a rescued reservation is unknown.
        of_lease = {} if of is None else {"job": of.job_id, "lease": of.lease, "queue": of.queue, "task": of.task or None}
        try:
            tell(logger, level, event, message, worker=self._worker_id, **of_lease, **fields)
        except Exception:  # of a handler or filter of the application: what is logged has happened all the same
            if logging.raiseExceptions:
                traceback.print_exc()

    # --- the worker ---

    def started(self, queues: Sequence[str] | None, database: str) -> None:
        serves = ", ".join(queues) if queues else "all queues"
        served = list(queues) if queues else None
        message = f"worker {self._worker_id} started; it serves {serves} of {database}"
        self._say(INFO, "worker_started", message, queues=served, database=database)

    def stopped(self) -> None:
        self._say(INFO, "worker_stopped", f"worker {self._worker_id} stopped")

    def lost(self) -> None:
        message = f"worker {self._worker_id} lost its lease and stops its jobs; other workers will run them again"
        self._say(ERROR, "worker_lost", message)

    def rescued(self, dead_worker: str, proof: str, jobs: Sequence[Rescued]) -> None:
        """Log the rescue of a dead worker, and the new state of each job that it was running."""
        message = f"rescued worker {dead_worker} ({counted(len(jobs), 'running job')}): {proof}"
        self._say(WARNING, "worker_rescued", message, dead_worker=dead_worker, proof=proof, jobs=len(jobs))
        for job in jobs:
            message = f"job {job.job_id} of {job.queue} was rescued and is now {job.state} (lease {job.lease})"
            of_job = {"job": job.job_id, "lease": job.lease, "queue": job.queue, "task": job.task}
            fields = {"state": str(job.state), "crashes": job.crashes, "dead_worker": dead_worker}
            self._say(WARNING, "job_rescued", message, **of_job, **fields)

    # --- attempts ---

    def attempt_started(self, lease: Lease) -> None:
        level = DEBUG if lease.placement is None else INFO
        if not logger.isEnabledFor(level):
            return
        where = "" if lease.placement is None else f" on {lease.placement.device}"
        model = f" with {lease.model}" if lease.model else ""
        self._say(
            level,
            "attempt_started",
            f"{_job(lease)} started attempt {lease.attempt} of {lease.max_attempts}{where}{model} {_lease(lease)}",
            lease,
            attempt=lease.attempt,
            max_attempts=lease.max_attempts,
            device=None if lease.placement is None else lease.placement.device,
            model=lease.model or None,
            reserved_bytes=None if lease.placement is None else lease.placement.reserved_bytes,
        )

    def ended(self, outcome: Outcome, run_s: float, value: Any = None) -> None:
        """Log how an attempt ended, and before that how long its model took to load, if its answer says so."""
        lease = outcome.lease
        if isinstance(outcome, Completed):
            level = DEBUG if lease.placement is None else INFO
            if logger.isEnabledFor(level):
                self._loaded(lease, value)
                took = format_duration(run_s)
                message = f"{_job(lease)} completed in {took} {_lease(lease)}"
                self._say(level, "job_completed", message, lease, attempt=lease.attempt, run_s=round(run_s, 6))
            return
        error = outcome.error
        why = f": {error.message}" if error else ""
        fields: dict[str, Any] = {"attempt": lease.attempt, "run_s": round(run_s, 6)}
        if isinstance(outcome, Postponed) and outcome.outcome in ("preempted", "released"):
            message = f"{_job(lease)} was returned to its queue ({outcome.outcome}){why} {_lease(lease)}"
            self._say(INFO, f"job_{outcome.outcome}", message, lease, **fields)
            return
        fields |= {"code": None, "error": None}
        if error is not None:
            fields |= {"code": error.code, "error": error.message, "traceback": error.traceback or None}
        if isinstance(outcome, Crashed) and outcome.state is State.AVAILABLE:
            message = f"{_job(lease)} was returned to its queue (crashed){why} {_lease(lease)}"
            self._say(WARNING, "job_crashed", message, lease, **fields)
            return
        if isinstance(outcome, Ended | Crashed):
            level = INFO if outcome.state is State.CANCELLED else WARNING
            message = f"{_job(lease)} was {outcome.state}{why} {_lease(lease)}"
            self._say(level, f"job_{outcome.state}", message, lease, **fields)
            return
        fields["due_at"] = iso(from_us(outcome.at_us))
        if outcome.outcome == "snoozed":
            fields["waiting_for"] = outcome.waiting_for
        message = f"{_job(lease)} was returned to its queue ({outcome.outcome}){why} {_lease(lease)}"
        self._say(WARNING, f"job_{outcome.outcome}", message, lease, **fields)

    def _loaded(self, lease: Lease, value: Any) -> None:
        load_s = value.get("load_s") if lease.placement is not None and lease.model and type(value) is dict else None
        if isinstance(load_s, int | float) and load_s > LOADED_S and lease.placement is not None:
            device = lease.placement.device
            message = f"{lease.model} was loaded on {device} in {format_duration(load_s)} for {_job(lease)} {_lease(lease)}"
            self._say(INFO, "model_loaded", message, lease, model=lease.model, device=device, load_s=round(load_s, 6))

    def late(self, lease: Lease) -> None:
        message = f"{_job(lease)}: attempt {lease.attempt} ended after its lease was lost; nothing was changed {_lease(lease)}"
        self._say(WARNING, "attempt_late", message, lease, attempt=lease.attempt)

    def abandoned(self, lease: Lease, why: str) -> None:
        message = f"{_job(lease)}: {lease.task} did not stop ({why}); it is given up but keeps running {_lease(lease)}"
        self._say(WARNING, "attempt_abandoned", message, lease, attempt=lease.attempt, why=why)

    def broken(self, lease: Lease, error: BaseException) -> None:
        """Log that an attempt could not be carried out; the worker that rescues this one takes its job back."""
        text = describe(error)
        message = f"{_job(lease)}: {text} {_lease(lease)}"
        self._say(ERROR, "attempt_broken", message, lease, attempt=lease.attempt, error=text, traceback=safe_trace(error))

    def preemption_requested(self, asked: Preemption) -> None:
        for_job = f" for job {asked.for_job}" if asked.for_job else ""
        message = f"job {asked.job_id} was asked to stop{for_job} (lease {asked.lease})"
        self._say(INFO, "preemption_requested", message, job=asked.job_id, lease=asked.lease, for_job=asked.for_job)

    # --- queues ---

    def queue_held(self, queue: str, reasons: Sequence[Hold]) -> None:
        details = [hold.detail for hold in reasons]
        message = f"queue {queue} is held: {'; '.join(details)}"
        self._say(INFO, "queue_held", message, queue=queue, reasons=[hold.reason for hold in reasons], details=details)

    def queue_released(self, queue: str) -> None:
        self._say(INFO, "queue_released", f"queue {queue} is no longer held", queue=queue)

    def refused(self, queue: str, count: int) -> None:
        message = f"{counted(count, 'job')} of {queue} refused: the backend is unavailable"
        self._say(WARNING, "jobs_refused", message, queue=queue, count=count)

    # --- backends, devices and their memory ---

    def backend_lost(self, backend: str, error: str, retry_at: datetime) -> None:
        fields = {"backend": backend, "error": error, "retry_at": iso(retry_at)}
        self._say(WARNING, "backend_lost", f"backend {backend} is unavailable: {error}", **fields)

    def backend_recovered(self, backend: str) -> None:
        self._say(INFO, "backend_recovered", f"backend {backend} is available again", backend=backend)

    def device_changed(self, event: str | None, device: str, error: str | None) -> None:
        """Log that a device was lost or can be read again; `event` is what its reading showed, None for nothing new."""
        if event == "device_lost":
            self._say(ERROR, event, f"device {device} cannot be read: {error}", device=device, error=error)
        elif event == "device_recovered":
            self._say(INFO, event, f"device {device} can be read again", device=device)

    def memory_released(self, lease: Lease, device: str, detail: str, clean_up_s: float) -> None:
        message = f"{_job(lease)}: clean-up of {device} took {format_duration(clean_up_s)}: {detail} {_lease(lease)}"
        fields = {"device": device, "model": lease.model or None, "clean_up_s": round(clean_up_s, 6), "detail": detail}
        self._say(INFO, "memory_released", message, lease, **fields)

    def memory_kept(self, lease: Lease, device: str, detail: str) -> None:
        reserved = format_size(0 if lease.placement is None else lease.placement.reserved_bytes)
        message = f"{_job(lease)}: {reserved} of {device} stays reserved: {detail} {_lease(lease)}"
        self._say(WARNING, "memory_kept", message, lease, device=device, model=lease.model or None, detail=detail)


def _job(lease: Lease) -> str:
    return f"job {lease.job_id} of {lease.queue}"


def _lease(lease: Lease) -> str:
    return f"(lease {lease.lease})"
