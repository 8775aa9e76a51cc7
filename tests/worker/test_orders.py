"""What a worker is told: to stop, to hurry, and how many jobs it may begin."""

from __future__ import annotations

from gpuqueue.worker.orders import Orders


def test_a_second_request_asks_to_hurry() -> None:
    orders = Orders()
    orders.request_stop()
    assert (orders.stop.is_set(), orders.at_once.is_set()) == (True, False)
    orders.request_stop()
    assert orders.at_once.is_set()


def test_as_many_jobs_begin_as_it_was_told_and_the_last_wakes_the_worker() -> None:
    orders, rung = Orders(max_jobs=2), []
    orders.wake = lambda: rung.append(orders.all_begun)
    assert [orders.may_begin() for _ in range(4)] == [True, True, False, False]
    assert rung == [True]


def test_without_a_limit_any_number_may_begin() -> None:
    orders = Orders()
    assert all(orders.may_begin() for _ in range(100))
    assert not orders.all_begun


def test_a_file_that_is_gone_stops_it_at_once() -> None:
    orders = Orders()
    orders.file_gone("q.db was deleted")
    assert orders.stop.is_set() and orders.at_once.is_set()
    assert str(orders.failure) == "q.db was deleted; start the worker again"
