"""Carries out an attempt, top to bottom: prepare, run, judge, publish, clean up.

These steps are the same for a plain function, a coroutine, a function in its own process, and a job on a device. The
executor runs the task; the `Kind` decides what to prepare, how to write the outcome, and what to clean up. Errors of each
step are handled in one place:

- prepare, in `Pipeline._prepare`: an error ends the attempt as if the task had raised it.
- run, in `run_here` and `run_on_loop`: any error becomes the attempt's error; SystemExit does not end the worker or the loop.
- judge, in `Judge`: an error ends the attempt with the code "internal", and spends it.
- publish, in `Pipeline._publish_again`: an outcome that cannot be written for what it is is replaced by one with the code
  "internal". One that the store cannot take is written later, or left to the worker that rescues this one.
- clean up, in `Pipeline._clean_up`: the device stays reserved until it is proven quiet, here or by the rescuing worker.

What else fails, in gpuqueue itself, ends the attempt in `Pipeline.broken`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from gpuqueue.contract.executor import AnyExecutor, Executor, is_async
from gpuqueue.domain.errors import ConfigurationError, GPUQueueError, StoreError, WorkerFailed, describe
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome
from gpuqueue.domain.safe_text import forget_frames
from gpuqueue.domain.verdicts import Discard
from gpuqueue.store.liveness import Liveness
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.output import Output
from gpuqueue.worker.running import Attempt, Ran, run_here
from gpuqueue.worker.site import Site


class EndedAttempt(NamedTuple):
    """How an attempt ended: its outcome, how long it ran, and what it returned or raised."""

    outcome: Outcome
    run_s: float = 0.0
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """The steps that differ between attempts with and without a device.

    `publish` has the outcome written; it returns False when the lease was lost and nothing is left to do here.
    `prepare` and `clean_up` handle the device and are None without one.
    """

    publish: Callable[[EndedAttempt], bool]
    prepare: Callable[[Attempt], None] | None = None
    clean_up: Callable[[Lease], object] | None = None


class Pipeline:
    """Takes claimed jobs through their attempts. Safe to use from any thread."""

    def __init__(
        self,
        site: Site,
        attempts: Attempts,
        judge: Judge,
        output: Output,
        event_loop: EventLoop,
        executor_of: Callable[[Lease], AnyExecutor | None],
        liveness: Liveness | None = None,
        *,
        end_worker: Callable[[GPUQueueError], None],
    ) -> None:
        self._log = site.log
        self._clock = site.clock
        self._attempts = attempts
        self._judge = judge
        self._output = output
        self._event_loop = event_loop
        self._liveness = liveness
        self._executor_of = executor_of
        self._end_worker = end_worker

    # --- the whole attempt ---

    def carry_out(self, lease: Lease, kind: Kind, slot: int = 0) -> None:
        """Run an attempt from its lease to its end, in this thread. What it raises, pass to `broken`.

        `slot` of the liveness file names the job, and whether it can be what kills this process: not if it is isolated.
        """
        executor = self._executor_of(lease)
        if executor is None:
            self._end(EndedAttempt(self._judge.unknown_task(lease)), kind)
            return
        if self._liveness is not None:
            self._liveness.executes(slot, -lease.job_id if getattr(executor, "isolated", False) else lease.job_id)
        attempt = self._attempts.begin(lease)
        refused = self._prepare(attempt, kind)
        ran = self._run(attempt, executor) if refused is None else Ran(error=refused)
        self.conclude(attempt, ran, kind)

    def start(self, lease: Lease, kind: Kind, hand_over: Callable[[tuple[Attempt, Ran]], None]) -> None:
        """Start an attempt of an asynchronous task without a device, on the event loop.

        `hand_over` is called on the loop when it has run, and has another thread `conclude` it: the loop never waits for the
        database. What it raises, pass to `broken`.
        """
        executor = self._executor_of(lease)
        if executor is None or not is_async(executor):
            raise ConfigurationError(f"task {lease.task!r} is no longer registered as an asynchronous function")
        attempt = self._attempts.begin(lease)
        refused = self._prepare(attempt, kind)
        if refused is not None:
            hand_over((attempt, Ran(error=refused)))
            return
        self._event_loop.start(attempt, executor).add_done_callback(lambda future: hand_over((attempt, _ran(future))))

    def conclude(self, attempt: Attempt, ran: Ran, kind: Kind) -> None:
        """Judge, publish and clean up an attempt that has run. What it raises, pass to `broken`."""
        try:
            outcome = self._judge.outcome(attempt, *ran)
            if not self._attempts.end(attempt):  # given up: its outcome is written already, and only its device remains
                if kind.clean_up is not None:
                    self._clean_up(attempt.lease, kind.clean_up)
                return
            self._output.flush(attempt.lease)  # before its run time is taken, which includes this
            self._end(EndedAttempt(outcome, self._clock.monotonic() - attempt.began_s, *ran), kind)
        finally:
            if ran.error is not None:
                forget_frames(ran.error)

    def broken(self, lease: Lease, error: BaseException, kind: Kind) -> None:
        """End an attempt that gpuqueue itself failed to handle; its lease fences an outcome that was written before."""
        try:
            self._attempts.forget(lease)
            self._end(EndedAttempt(self._judge.internal(lease, error)), kind)
        except BaseException as again:
            self._end_worker(WorkerFailed(f"the attempt of job {lease.job_id} cannot be ended: {describe(again)}"))

    # --- its steps ---

    def _prepare(self, attempt: Attempt, kind: Kind) -> BaseException | None:
        """Prepare the attempt; returns the error that keeps it from running."""
        try:
            attempt.check()
            if attempt.lease.arguments_error:
                raise Discard(attempt.lease.arguments_error, code="arguments")
            if kind.prepare is not None:
                kind.prepare(attempt)
        except BaseException as raised:  # SystemExit and the like end the attempt, not the worker
            return raised
        return None

    def _run(self, attempt: Attempt, executor: AnyExecutor) -> Ran:
        """Run the task in this thread, or on the event loop while this thread waits."""
        if is_async(executor):
            return self._event_loop.start(attempt, executor).result()
        return run_here(attempt, cast(Executor, executor))

    def _end(self, ended: EndedAttempt, kind: Kind) -> None:
        """Log and write how the attempt ended, and clean up unless the device is another worker's to clean up."""
        self._log.ended(ended.outcome, ended.run_s, ended.value)
        try:
            is_here = kind.publish(ended)
        except BaseException as error:
            is_here = self._publish_again(ended, kind, error)
        if is_here and kind.clean_up is not None:
            self._clean_up(ended.outcome.lease, kind.clean_up)

    def _publish_again(self, ended: EndedAttempt, kind: Kind, error: BaseException) -> bool:
        """Have an outcome written that the store could not take, or a replacement if it cannot be written for what it is."""
        lease = ended.outcome.lease
        try:
            if not isinstance(error, StoreError):
                ended = EndedAttempt(self._judge.internal(lease, error), ended.run_s)
            return kind.publish(ended)
        except StoreError as again:
            # The row keeps its lease and reservation. This worker stops, and the one that rescues it takes them back.
            self._log.broken(lease, again)
        except BaseException as again:
            self._log.broken(lease, again)
            self._end_worker(WorkerFailed(f"the outcome of job {lease.job_id} cannot be written: {describe(again)}"))
        return False

    def _clean_up(self, lease: Lease, clean_up: Callable[[Lease], object]) -> None:
        """Release what the attempt held."""
        try:
            clean_up(lease)
        except StoreError as error:  # the row keeps its reservation, as above
            self._log.broken(lease, error)
        except BaseException as error:
            self._log.broken(lease, error)
            self._end_worker(WorkerFailed(f"the clean-up after job {lease.job_id} failed: {describe(error)}"))


def _ran(future: Future[Ran]) -> Ran:
    """Return what an attempt on the loop returned or raised; one that the loop itself dropped was cancelled."""
    try:
        return future.result()
    except BaseException as error:
        return Ran(error=error)
