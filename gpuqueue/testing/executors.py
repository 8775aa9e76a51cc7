"""Provides the tests that every executor must pass, plain or async; executor authors subclass them.

from gpuqueue.testing.executors import ExecutorSuite

class TestShout(ExecutorSuite):
    arguments = {"text": "hello"}
    endless = {"text": "hello", "times": 1_000_000}
    failing = {"text": ""}
    emits = True

    def make_executor(self) -> Executor:
        return Shout()
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gpuqueue.contract.executor import AnyExecutor, AttemptInterrupted, is_async
from gpuqueue.contract.hookspecs import RegisterExecutorsDetails, hookimpl
from gpuqueue.domain import errors
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.errors import BackendUnavailable, ExecutionError
from gpuqueue.domain.verdicts import failure
from gpuqueue.testing.attempts import Bench, Ended, RecordedAttempt
from gpuqueue.testing.idle import run_until_idle
from gpuqueue.testing.leftovers import nothing_left_behind
from gpuqueue.testing.queues import foreign_variables, queue_maker
from gpuqueue.testing.waiting import DEADLINE_S
from gpuqueue.worker.running import Interruption

__all__ = ["ExecutorSuite"]

INTERRUPTIONS: tuple[Interruption, ...] = ("cancelled", "timed_out", "preempted", "stopping", "lease_lost")
BEGINS_WITHIN_S = 1.0  # after this, a silent async executor counts as started
ABANDON_S = 2.0  # after this, a worker abandons an attempt that was asked to stop


class ExecutorSuite:
    """Subclass it, define how to make the executor and which arguments make it do what, and pytest runs these tests on it.

    An executor that needs other fixtures may be made in a fixture `executor` instead.
    """

    arguments: ClassVar[Mapping[str, Any]] = {}  # of an attempt that completes
    endless: ClassVar[Mapping[str, Any] | None] = None  # of one that runs for at least a minute, and emits something first
    failing: ClassVar[Mapping[str, Any] | None] = None  # of one that fails
    emits: ClassVar[bool] = False  # whether an attempt that completes emits anything
    backend: ClassVar[str | None] = None  # the name of the backend that it needs, if any
    placement: ClassVar[Placement | None] = None  # the device that its attempts get

    def make_executor(self) -> AnyExecutor:
        """Make the executor; called for each test."""
        raise NotImplementedError(f"{type(self).__name__} must define the executor to test: def make_executor(self): return …")

    def make_executor_without_backend(self) -> AnyExecutor:
        """Make one with an unreachable backend, such as at a port on which nothing listens."""
        raise NotImplementedError(
            f"{type(self).__name__} has a backend: define make_executor_without_backend(self), an executor that cannot reach it"
        )

    def close_executor(self, executor: AnyExecutor) -> None:
        """Release what the executor keeps between attempts, if anything; called at the end of a test, maybe twice."""

    # --- what it returns and says ---

    def test_its_result_is_json(self, bench: Bench, executor: AnyExecutor) -> None:
        value = self._returned(bench, executor)
        assert json.loads(json.dumps(value, allow_nan=False)) == value

    def test_what_it_says_goes_through_the_context(self, bench: Bench, executor: AnyExecutor) -> None:
        attempt = self._attempt(self.arguments)
        self._returned(bench, executor, attempt)
        assert bool(attempt.emitted) == self.emits, f"emits is {self.emits}, but the attempt emitted {attempt.emitted}"
        assert all(isinstance(text, str) and text for text in attempt.emitted)

    def test_it_runs_one_attempt_after_another(self, bench: Bench, executor: AnyExecutor) -> None:
        first, second = self._attempt(self.arguments), self._attempt(self.arguments, attempt=2)
        self._returned(bench, executor, first)
        self._returned(bench, executor, second)
        assert bool(second.emitted) == bool(first.emitted)

    def test_attempts_run_side_by_side(self, bench: Bench, executor: AnyExecutor) -> None:
        started = [bench.start(executor, self._attempt(self.arguments)) for _ in range(3)]
        assert [self._ended(future)[1] for future in started] == [None] * 3

    # --- being interrupted ---

    @pytest.mark.parametrize("why", INTERRUPTIONS)
    def test_an_interruption_while_it_runs_ends_it(self, bench: Bench, executor: AnyExecutor, why: Interruption) -> None:
        self._interrupt(bench, executor, why)

    @pytest.mark.parametrize("why", INTERRUPTIONS)
    def test_an_interruption_before_it_begins_ends_it(self, bench: Bench, executor: AnyExecutor, why: Interruption) -> None:
        attempt = self._endless_attempt()
        attempt.interrupt(why)
        self._assert_interrupted(bench.start(executor, attempt), why, executor)

    def test_it_runs_again_after_an_interruption(self, bench: Bench, executor: AnyExecutor) -> None:
        self._interrupt(bench, executor, "cancelled")
        self._returned(bench, executor)

    # --- failing ---

    def test_a_failure_is_an_error_that_can_be_stored(self, bench: Bench, executor: AnyExecutor) -> None:
        error = self._failed(bench, executor)
        code, message = failure(error)
        assert code and message.strip(), f"{error!r} has no code or no message"
        if isinstance(error, ExecutionError):
            documented = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ExecutionError)]
            assert any(kind in documented for kind in type(error).__mro__ if kind is not ExecutionError), (
                f"{type(error).__name__} must be, or derive from, a subclass of ExecutionError in gpuqueue.domain.errors"
            )

    def test_it_runs_again_after_a_failure(self, bench: Bench, executor: AnyExecutor) -> None:
        self._failed(bench, executor)
        self._returned(bench, executor)

    def test_an_absent_backend_is_told_by_its_name(self, bench: Bench) -> None:
        if self.backend is None:
            pytest.skip("the executor has no backend")
        absent = self.make_executor_without_backend()
        try:
            value, error = self._ended(bench.start(absent, self._attempt(self.arguments)))
        finally:
            self.close_executor(absent)
        assert isinstance(error, BackendUnavailable), f"expected BackendUnavailable without its backend, not {error or value!r}"
        assert error.backend == self.backend

    # --- what it leaves behind ---

    def test_it_leaves_no_thread_and_no_connection_behind(self, executor: AnyExecutor) -> None:
        with nothing_left_behind():
            bench = Bench()
            self._returned(bench, executor)
            if self.failing is not None:
                self._failed(bench, executor)
            if self.endless is not None:
                self._interrupt(bench, executor, "cancelled")
            self.close_executor(executor)
            bench.close()

    # --- at work ---

    def test_a_worker_runs_it(self, executor: AnyExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Verbs:
            @hookimpl
            def register_executors(self, details: RegisterExecutorsDetails) -> Mapping[str, AnyExecutor]:
                return {"suite.verb": executor}

        for name in foreign_variables():
            monkeypatch.delenv(name)
        with queue_maker(tmp_path) as make:
            gq = make(plugins={"verbs": Verbs()})
            job = gq.verb("suite.verb").enqueue(**self.arguments)
            run_until_idle(gq)
            job.result(timeout_s=0)
            assert bool("".join(job.stream())) == self.emits

    # --- how it is tested ---

    @pytest.fixture
    def executor(self) -> Iterator[AnyExecutor]:
        """The executor of one test."""
        made = self.make_executor()
        yield made
        self.close_executor(made)

    @pytest.fixture
    def bench(self) -> Iterator[Bench]:
        """Runs attempts as a worker does."""
        bench = Bench()
        yield bench
        bench.close()

    def _attempt(self, arguments: Mapping[str, Any], attempt: int = 1) -> RecordedAttempt:
        return RecordedAttempt(arguments, task="suite.verb", attempt=attempt, placement=self.placement)

    def _endless_attempt(self) -> RecordedAttempt:
        if self.endless is None:
            pytest.skip("needs arguments with which an attempt runs until it is interrupted: endless = {…}")
        return self._attempt(self.endless)

    def _ended(self, future: Future[Ended]) -> Ended:
        try:
            return future.result(timeout=DEADLINE_S)
        except TimeoutError:
            pytest.fail(f"the attempt has not ended after {DEADLINE_S:g} s")

    def _returned(self, bench: Bench, executor: AnyExecutor, attempt: RecordedAttempt | None = None) -> Any:
        value, error = self._ended(bench.start(executor, attempt or self._attempt(self.arguments)))
        if error is not None:
            raise error
        return value

    def _failed(self, bench: Bench, executor: AnyExecutor) -> BaseException:
        if self.failing is None:
            pytest.skip("needs arguments with which an attempt fails: failing = {…}")
        value, error = self._ended(bench.start(executor, self._attempt(self.failing)))
        assert isinstance(error, Exception), (
            f"the arguments `failing` must make it fail; it ended with {value if error is None else error!r}"
        )
        return error

    def _interrupt(self, bench: Bench, executor: AnyExecutor, why: Interruption) -> None:
        attempt = self._endless_attempt()
        future = bench.start(executor, attempt)
        begun = attempt.begun.wait(BEGINS_WITHIN_S if is_async(executor) else DEADLINE_S)
        if future.done():
            value, error = future.result()
            pytest.fail(f"an attempt with the arguments `endless` ended by itself: {value if error is None else error!r}")
        assert begun or is_async(executor), (
            "the attempt neither emitted anything nor checked whether it must stop. Call context.check() often, or work inside "
            "context.interrupted_by(stop)"
        )
        attempt.interrupt(why)
        self._assert_interrupted(future, why, executor)

    def _assert_interrupted(self, future: Future[Ended], why: Interruption, executor: AnyExecutor) -> None:
        try:
            value, error = future.result(timeout=DEADLINE_S)
        except TimeoutError:
            pytest.fail(
                f"the attempt still runs {DEADLINE_S:g} s after it was asked to stop ({why}); a worker abandons it after "
                f"{ABANDON_S:g} s"
            )
        allowed = (AttemptInterrupted, asyncio.CancelledError) if is_async(executor) else (AttemptInterrupted,)
        assert isinstance(error, allowed), (
            f"the attempt was asked to stop ({why}) and ended with {value if error is None else error!r}; "
            f"it must let {' or '.join(kind.__name__ for kind in allowed)} propagate"
        )
