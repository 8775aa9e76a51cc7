"""An attempt's steps, one after another, and what becomes of what each of them raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from gpuqueue import GPUQueue
from gpuqueue.domain.answers import Placement
from gpuqueue.domain.errors import StoreError
from gpuqueue.domain.job import Lease
from gpuqueue.executors.callables import CallableExecutor, CoroutineExecutor
from gpuqueue.worker.attempt import AnyExecutor, EndedAttempt, Kind, Pipeline
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.event_loop import EventLoop
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.running import Attempt
from gpuqueue.worker.site import Site

LEASE = Lease(1, 1, "default", "work", 1, 1, {}, None, datetime.now(UTC))


class Steps:
    """A pipeline whose steps tell in which order they come; each may be replaced by what raises."""

    def __init__(self, gq: GPUQueue, event_loop: EventLoop) -> None:
        self.now_s = 0.0
        clock = Clock(wall=gq.now_us, monotonic=lambda: self.now_s)
        site = Site("w", gq.store, gq.plugins, gq.own_settings(), clock, WorkerLog("w"))
        backends, orders = Backends(site), Orders()
        self.orders = orders
        output = Output(gq.store, clock, orders)
        judge = Judge(site, backends, tasks=gq.tasks, max_payload_bytes=10_000, max_crashes=3)
        self.output = output
        self.attempts = Attempts(site, judge, output, orders)
        self.pipeline = Pipeline(
            site, self.attempts, judge, output, event_loop, lambda lease: self.executor, end_worker=orders.fail
        )
        self.executor: AnyExecutor | None = CallableExecutor(self.run)
        self.order: list[str] = []
        self.ended: list[EndedAttempt] = []
        self.running: list[Attempt] = []
        self.raises: dict[str, BaseException] = {}
        self.is_held = True  # the lease, when the outcome is written
        self.kind = Kind(self.publish, self.prepare, self.clean_up)

    def _step(self, name: str) -> None:
        self.order.append(name)
        if name in self.raises:
            raise self.raises[name]

    def prepare(self, attempt: Attempt) -> None:
        self.running.append(attempt)
        self._step("prepare")

    def run(self) -> str:
        self._step("run")
        return "done"

    def publish(self, ended: EndedAttempt) -> bool:
        self.ended.append(ended)
        self._step("publish")
        return self.is_held

    def clean_up(self, lease: Lease) -> None:
        self._step("clean up")

    def carry_out(self) -> None:
        self.pipeline.carry_out(LEASE, self.kind)


@pytest.fixture
def steps(gq: GPUQueue) -> Iterator[Steps]:
    event_loop = EventLoop(Clock(wall=gq.now_us))
    yield Steps(gq, event_loop)
    event_loop.close(wait_s=5.0)


def test_the_steps_follow_each_other(steps: Steps) -> None:
    steps.carry_out()
    assert steps.order == ["prepare", "run", "publish", "clean up"]
    (ended,) = steps.ended
    assert (type(ended.outcome).__name__, ended.value, ended.error) == ("Completed", "done", None)
    assert not steps.attempts.any_running


def test_the_time_that_an_attempt_took_includes_writing_what_it_said(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    def flush(_lease: Lease) -> None:
        steps.now_s += 2.0

    monkeypatch.setattr(steps.output, "flush", flush)
    steps.carry_out()
    assert [ended.run_s for ended in steps.ended] == [2.0]


def test_a_coroutine_takes_the_same_way(steps: Steps) -> None:
    async def run() -> str:
        return steps.run()

    steps.executor = CoroutineExecutor(run)
    steps.carry_out()
    assert steps.order == ["prepare", "run", "publish", "clean up"]
    assert steps.ended[0].value == "done"


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), StoreError("the disk is full")])
@pytest.mark.parametrize("step", ["prepare", "run"])
def test_what_prepare_or_run_raises_fails_the_attempt(steps: Steps, step: str, error: BaseException) -> None:
    steps.raises[step] = error
    steps.carry_out()
    assert steps.order == [*(["prepare"] if step == "prepare" else ["prepare", "run"]), "publish", "clean up"]
    assert steps.ended[0].error is error
    assert type(steps.ended[0].outcome).__name__ == "Ended"


def test_an_attempt_that_may_not_begin_is_given_back_before_anything_is_prepared(steps: Steps) -> None:
    steps.attempts.stop_all("stopping")
    steps.carry_out()
    assert steps.order == ["publish", "clean up"]
    assert getattr(steps.ended[0].outcome, "outcome", None) == "released"


def test_an_attempt_on_a_card_is_given_back_too_when_its_workers_lease_may_have_ended(steps: Steps) -> None:
    steps.attempts.may_go_on = lambda: False
    steps.pipeline.carry_out(LEASE._replace(placement=Placement("gpu0", 1)), steps.kind)
    assert steps.order == ["publish", "clean up"]
    assert getattr(steps.ended[0].outcome, "outcome", None) == "released"
    steps.carry_out()
    assert steps.order[2:] == ["prepare", "run", "publish", "clean up"], "the rows of one without a card are fenced"


def test_a_task_that_nobody_knows_is_snoozed_and_its_device_freed(steps: Steps) -> None:
    steps.executor = None
    steps.carry_out()
    assert steps.order == ["publish", "clean up"]
    assert getattr(steps.ended[0].outcome, "outcome", None) == "snoozed"


def test_who_lost_the_lease_cleans_nothing_up(steps: Steps) -> None:
    steps.is_held = False
    steps.carry_out()
    assert steps.order == ["prepare", "run", "publish"]


@pytest.mark.parametrize(("step", "order"), [("publish", ["publish", "publish"]), ("clean up", ["publish", "clean up"])])
def test_what_cannot_be_written_is_left_to_whoever_comes_after(
    steps: Steps, step: str, order: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    steps.raises[step] = StoreError("the disk is full")
    with caplog.at_level(logging.ERROR, "gpuqueue.worker"):
        steps.carry_out()
    assert steps.order == ["prepare", "run", *order]
    assert "the disk is full" in caplog.text


def given_up(steps: Steps) -> Callable[..., Any]:
    def run() -> None:
        steps.running[0].interrupt("cancelled")
        steps.attempts.give_up_all()

    return run


def test_one_that_was_given_up_publishes_nothing_and_still_frees_its_device(steps: Steps) -> None:
    steps.executor = CallableExecutor(given_up(steps))
    steps.carry_out()
    assert steps.order == ["prepare", "clean up"]


def test_an_outcome_that_cannot_be_written_is_replaced_by_that_error(steps: Steps) -> None:
    class Odd(Exception):
        pass

    publish = steps.publish

    def refuses_the_first(ended: EndedAttempt) -> bool:
        if not steps.ended:
            steps.ended.append(ended)
            raise Odd("not this one")
        return publish(ended)

    steps.kind = Kind(refuses_the_first, steps.prepare, steps.clean_up)
    steps.carry_out()
    assert steps.order == ["prepare", "run", "publish", "clean up"]
    assert steps.ended[-1].outcome.error.code == "internal"
    assert "not this one" in steps.ended[-1].outcome.error.message


def test_arguments_that_cannot_be_decoded_discard_the_job_before_it_is_prepared(steps: Steps) -> None:
    steps.pipeline.carry_out(LEASE._replace(arguments_error="the job's arguments are missing from the file"), steps.kind)
    assert steps.order == ["publish", "clean up"]
    (ended,) = steps.ended
    assert (ended.outcome.state, ended.outcome.error.code) == ("discarded", "arguments")
    assert ended.outcome.error.message == "the job's arguments are missing from the file"


def test_what_nothing_expects_ends_the_attempt(steps: Steps) -> None:
    steps.pipeline.broken(LEASE, RuntimeError("no"), steps.kind)
    assert steps.order == ["publish", "clean up"]
    assert steps.ended[0].outcome.error.code == "internal"


@pytest.mark.parametrize("step", ["publish", "clean up"])
def test_what_fails_again_ends_the_worker(steps: Steps, step: str) -> None:
    steps.raises[step] = RuntimeError("no")
    steps.carry_out()
    assert "RuntimeError: no" in str(steps.orders.failure)
    assert steps.orders.stop.is_set()
