"""Carries out an attempt, top to bottom: prepare, run, judge, publish, clean up.

These steps are the same for a plain function, a coroutine, a function in its own process, and a job on a device. The
executor runs the task; the `Kind` decides what to prepare, how to write the outcome, and what to clean up. Errors of each
step are handled in one place:

- prepare, in `Pipeline._prepare`: an error ends the attempt as if the task had raised it.
- run, in `run_here` and `run_on_loop`: any error becomes the attempt's error; SystemExit does not end the worker or the loop.
- judge, in `Judge._failed`: when a plugin fails while judging, the job is snoozed. Nothing else is caught there yet.
- publish, in `Pipeline._publish`: a job with an outcome that cannot be written is left to the worker that rescues it.
- clean up, in `Pipeline._clean_up`: a device that cannot be released is left to that worker too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from gpuqueue.contract.executor import AnyExecutor, Executor, is_async
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Outcome
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
    ) -> None:
        self._log = site.log
        self._clock = site.clock
        self._attempts = attempts
        self._judge = judge
        self._output = output
        self._event_loop = event_loop
        self._executor_of = executor_of

    # --- the whole attempt ---

    def carry_out(self, lease: Lease, kind: Kind) -> bool:
        """Run an attempt from its lease to its end, in this thread; returns False when it was given up meanwhile."""
        executor = self._executor_of(lease)
        if executor is None:
            if self._publish(EndedAttempt(self._judge.unknown_task(lease)), kind):
                self._clean_up(lease, kind)
            return True
        attempt = self._attempts.begin(lease)
        refused = self._prepare(attempt, kind)
        ran = self._run(attempt, executor) if refused is None else Ran(error=refused)
        return self.conclude(attempt, ran, kind)

    def start(self, lease: Lease, hand_over: Callable[[tuple[Attempt, Ran]], None]) -> None:
        """Start an attempt of an asynchronous task without a device, on the event loop.

        `hand_over` is called on the loop when it has run, and has another thread `conclude` it: the loop never waits for the
        database.
        """
        executor = self._executor_of(lease)
        assert executor is not None and is_async(executor)
        attempt = self._attempts.begin(lease)
        self._event_loop.start(attempt, executor).add_done_callback(lambda future: hand_over((attempt, future.result())))

    def conclude(self, attempt: Attempt, ran: Ran, kind: Kind) -> bool:
        """Judge, publish and clean up an attempt that has run; returns False when it was given up meanwhile."""
        outcome = self._judge.outcome(attempt, *ran)
        is_ours = self._attempts.end(attempt)  # else its outcome is written already, and only its device remains
        if is_ours:
            self._output.flush(attempt.lease)  # before its run time is taken, which includes this
        run_s = self._clock.monotonic() - attempt.began_s
        if not is_ours or self._publish(EndedAttempt(outcome, run_s, *ran), kind):
            self._clean_up(attempt.lease, kind)
        return is_ours

    # --- its steps ---

    def _prepare(self, attempt: Attempt, kind: Kind) -> BaseException | None:
        """Prepare the attempt; returns the error that keeps it from running."""
        try:
            attempt.check()
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

    def _publish(self, ended: EndedAttempt, kind: Kind) -> bool:
        """Log and write how the attempt ended; returns whether its device must still be cleaned up here."""
        lease = ended.outcome.lease
        self._log.ended(ended.outcome, ended.run_s, ended.value)
        try:
            return kind.publish(ended)
        except StoreError as error:
            # The row keeps its lease and reservation. This worker stops, and the one that rescues it takes them back.
            self._log.broken(lease, error)
            return False

    def _clean_up(self, lease: Lease, kind: Kind) -> None:
        """Release what the attempt held."""
        if kind.clean_up is None:
            return
        try:
            kind.clean_up(lease)
        except StoreError as error:  # the row keeps its reservation, as above
            self._log.broken(lease, error)
