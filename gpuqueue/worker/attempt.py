"""Carries out an attempt, top to bottom: prepare, run, judge, publish, clean up.

These steps are the same for a plain function, a coroutine, a function in a process of its own, and a job on a device. The
executor says how the task runs; the `Kind` says what there is to prepare, how the outcome is written, and what there is to
clean up. What a step raises is handled in one place, named here with what becomes of it:

- prepare, in `Pipeline._prepare`: it ends the attempt as if the task had raised it.
- run, in `run_here` and `run_on_loop`: it becomes the attempt's error, whatever it is; SystemExit ends no worker and no loop.
- judge, in `Judge._failed`: where a plugin fails to judge the failure, the job is snoozed. Nothing else is caught there yet.
- publish, in `Pipeline._publish`: an outcome that cannot be written leaves its job to whoever comes after this worker.
- clean up, in `Pipeline._clean_up`: a device that cannot be freed is left to them too.
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
    """What differs between attempts on a device and those without one.

    `publish` sees to it that an outcome is written; it returns False when the lease was lost and nothing is left to do here.
    `prepare` and `clean_up` see to the device, None where there is none.
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
        """Take an attempt from its lease to its end, in this thread; returns False when it was given up meanwhile."""
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
        """Begin an attempt of an asynchronous task that has no device, and run it on the event loop.

        `hand_over` gets it there when it has run, and has another thread `conclude` it: the loop never waits for the database.
        """
        executor = self._executor_of(lease)
        assert executor is not None and is_async(executor)
        attempt = self._attempts.begin(lease)
        self._event_loop.start(attempt, executor).add_done_callback(lambda future: hand_over((attempt, future.result())))

    def conclude(self, attempt: Attempt, ran: Ran, kind: Kind) -> bool:
        """Take an attempt that has run to its end; returns False when it was given up meanwhile."""
        outcome = self._judge.outcome(attempt, *ran)
        is_ours = self._attempts.end(attempt)  # else its outcome is written already, and only its device is left
        if is_ours:
            self._output.flush(attempt.lease)  # which belongs to the time that it took
        run_s = self._clock.monotonic() - attempt.began_s
        if not is_ours or self._publish(EndedAttempt(outcome, run_s, *ran), kind):
            self._clean_up(attempt.lease, kind)
        return is_ours

    # --- its steps ---

    def _prepare(self, attempt: Attempt, kind: Kind) -> BaseException | None:
        """Make ready what the attempt needs; returns what kept it from running."""
        try:
            attempt.check()
            if kind.prepare is not None:
                kind.prepare(attempt)
        except BaseException as raised:  # SystemExit and the like end the attempt, not the worker
            return raised
        return None

    def _run(self, attempt: Attempt, executor: AnyExecutor) -> Ran:
        """Run the task, in this thread or, while it waits, on the event loop."""
        if is_async(executor):
            return self._event_loop.start(attempt, executor).result()
        return run_here(attempt, cast(Executor, executor))

    def _publish(self, ended: EndedAttempt, kind: Kind) -> bool:
        """Let everybody know how the attempt ended; returns whether its device is still to be cleaned up here."""
        lease = ended.outcome.lease
        self._log.ended(ended.outcome, ended.run_s, ended.value)
        try:
            return kind.publish(ended)
        except StoreError as error:
            # The row keeps its lease and reservation: whoever comes after this worker, which stops, takes them back.
            self._log.broken(lease, error)
            return False

    def _clean_up(self, lease: Lease, kind: Kind) -> None:
        """Give back what the attempt held."""
        if kind.clean_up is None:
            return
        try:
            kind.clean_up(lease)
        except StoreError as error:  # the row keeps its reservation, as above
            self._log.broken(lease, error)
