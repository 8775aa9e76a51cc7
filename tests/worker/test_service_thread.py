"""A part's thread is started again when an error ends it; one that keeps failing ends the worker, and one that hangs is seen."""

from __future__ import annotations

import threading

import pytest

from gpuqueue.domain.errors import WorkerFailed
from gpuqueue.domain.view import STUCK_S, PartInfo
from gpuqueue.testing.waiting import DEADLINE_S
from gpuqueue.worker import service_thread
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.service_thread import MOST_FAILURES, ServiceThread


class Time:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.clock = Clock(wall=lambda: int(self.now_s * 1e6), monotonic=lambda: self.now_s)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_thread, "AGAIN_S", 0.0)


@pytest.mark.parametrize("error", [RuntimeError("oops"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_thread_that_fails_is_started_again(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    left, ran = [error], threading.Event()

    def work() -> None:
        if left:
            raise left.pop()
        ran.set()

    thread = ServiceThread("output", work, Time().clock, Orders())
    thread.start()
    thread.join(DEADLINE_S)
    assert ran.is_set()
    assert f"the worker's output thread failed and is started again: {type(error).__name__}" in caplog.text


def test_a_thread_that_keeps_failing_ends_the_worker() -> None:
    orders, runs = Orders(), []

    def work() -> None:
        runs.append(1)
        raise RuntimeError("oops")

    thread = ServiceThread("output", work, Time().clock, orders)
    thread.start()
    thread.join(DEADLINE_S)
    assert len(runs) == MOST_FAILURES
    assert orders.stop.is_set()
    assert isinstance(orders.failure, WorkerFailed)
    assert "the worker's output thread failed 5 times within a minute: RuntimeError: oops" in str(orders.failure)
    assert thread.info().trouble == "its output thread has ended"


def test_failures_that_are_far_apart_are_not_counted_together() -> None:
    time, orders, runs = Time(), Orders(), []

    def work() -> None:
        time.now_s += 60.0
        runs.append(1)
        if len(runs) <= 2 * MOST_FAILURES:
            raise RuntimeError("oops")

    thread = ServiceThread("output", work, time.clock, orders)
    thread.start()
    thread.join(DEADLINE_S)
    assert len(runs) == 2 * MOST_FAILURES + 1
    assert orders.failure is None


def test_a_part_tells_how_long_it_has_been_at_its_work_and_when_it_last_did_something() -> None:
    time = Time()
    pulse = ServiceThread("output", lambda: None, time.clock, Orders()).pulse
    with pulse:
        time.now_s = 5.0
        assert pulse.info() == PartInfo("output", True, 5.0, 0)
    assert pulse.info() == PartInfo("output", True, None, 5_000_000)


def test_a_part_that_hangs_is_logged_once_with_the_line_where_it_stands(caplog: pytest.LogCaptureFixture) -> None:
    time, began, may_end = Time(), threading.Event(), threading.Event()

    def work() -> None:
        with thread.pulse:
            began.set()
            may_end.wait(DEADLINE_S)

    thread = ServiceThread("maintenance", work, time.clock, Orders())
    thread.start()
    assert began.wait(DEADLINE_S)
    thread.pulse.tell_if_stuck()
    assert not caplog.text
    time.now_s = STUCK_S + 1
    for _ in range(2):
        thread.pulse.tell_if_stuck()
    may_end.set()
    thread.join(DEADLINE_S)
    thread.pulse.tell_if_stuck()
    (record,) = caplog.records
    told, *lines = record.getMessage().splitlines()
    assert told == "this worker cannot do its work: its maintenance thread has been stuck for 1m 1s, in"
    assert any("may_end.wait(DEADLINE_S)" in line for line in lines)


@pytest.mark.parametrize(
    ("part", "trouble"),
    [
        (PartInfo("output", True, None, 0), ""),
        (PartInfo("output", True, STUCK_S, 0), ""),
        (PartInfo("loop", True, 180.0, 0), "its loop thread has been stuck for 3m"),
        (PartInfo("job", False, None, 0), "its job thread has ended"),
    ],
)
def test_a_part_that_cannot_work_is_told(part: PartInfo, trouble: str) -> None:
    assert part.trouble == trouble
