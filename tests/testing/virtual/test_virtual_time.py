"""Time that jumps: its threads take turns, in the order of what they wait for, and what they raise is not lost."""

from __future__ import annotations

import pytest

from gpuqueue.testing.virtual.time import Signal, VirtualTime


def test_threads_wake_in_the_order_of_their_times_and_time_passes_only_while_all_wait() -> None:
    time, seen = VirtualTime(), []

    def sleeper(name: str, *naps_s: float) -> None:
        for nap_s in naps_s:
            time.sleep(nap_s)
            seen.append((name, time.now_s))

    time.spawn(lambda: sleeper("a", 3600.0, 1.0))
    time.spawn(lambda: sleeper("b", 10.0, 3590.0, 0.5))
    time.run()
    assert seen == [("b", 10.0), ("a", 3600.0), ("b", 3600.0), ("b", 3600.5), ("a", 3601.0)]
    assert time.now_s == 3601.0


def test_the_wall_clock_follows() -> None:
    time = VirtualTime()
    began_us = time.wall()
    time.call_at(1.5, lambda: None)
    time.run()
    assert time.wall() - began_us == 1_500_000
    assert time.clock.monotonic() == 1.5


def test_a_signal_wakes_those_who_wait_for_it_and_a_wait_ends_by_itself() -> None:
    time = VirtualTime()
    signal, seen = Signal(time), []

    def waits(timeout_s: float) -> None:
        seen.append((signal.wait(timeout_s), time.now_s))

    time.spawn(lambda: waits(100.0))
    time.spawn(lambda: waits(2.0))
    time.call_at(5.0, signal.set)
    time.run()
    assert seen == [(False, 2.0), (True, 5.0)]
    assert signal.wait(1.0), "one that is set needs no wait"
    assert time.now_s == 100.0, "the longer wait's end still passes, and wakes nobody"


def test_time_stops_where_it_is_told_and_goes_on() -> None:
    time, seen = VirtualTime(), []
    time.spawn(lambda: (time.sleep(10.0), seen.append(time.now_s)))
    time.run(4.0)
    assert (time.now_s, seen) == (4.0, [])
    time.run(12.0)
    assert (time.now_s, seen) == (12.0, [10.0])


def test_what_a_thread_raises_is_raised_where_time_runs() -> None:
    time = VirtualTime()
    time.spawn(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        time.run()


def test_threads_that_wait_for_ever_are_ended() -> None:
    time, ended = VirtualTime(), []

    def work() -> None:
        try:
            Signal(time).wait()
        finally:
            ended.append(True)

    time.spawn(work)
    time.spawn(work)
    time.run()
    time.close()
    assert ended == [True, True]
