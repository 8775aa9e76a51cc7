"""What only one worker of all does beside its jobs: who does it, what it says of itself, and who takes it over."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from gpuqueue import hookimpl
from gpuqueue.testing.waiting import DEADLINE_S
from tests.processes import started


class Counting:
    """A service that tells its term, and waits to be stopped."""

    def __init__(self) -> None:
        self.terms: list[int] = []
        self.ended = threading.Event()

    @hookimpl
    def register_services(self, details):
        return {"counting": self.run}

    def run(self, context):
        self.terms.append(context.term)
        context.note({"terms": self.terms})
        context.stopping.wait()
        self.ended.set()


def test_a_service_runs_in_one_worker_and_another_takes_it_over(make_queue, start_worker, until):
    first, second = Counting(), Counting()
    gq = make_queue(plugins={"counting": first})
    worker = start_worker(gq)
    until(lambda: first.terms, "it runs")
    other = start_worker(make_queue(plugins={"counting": second}))
    (found,) = gq.services()
    assert (found.name, found.worker_id, found.term, found.status) == ("counting", worker.id, 1, {"terms": [1]})
    assert second.terms == []
    worker.stop()
    assert first.ended.is_set()
    until(lambda: second.terms == [2], "the other takes it over")
    until(lambda: gq.services()[0].worker_id == other.id)
    other.stop()
    assert gq.services()[0].worker_id is None
    assert gq.services()[0].status == {"terms": [2]}, "what it last said stays"


def test_a_service_that_fails_says_so_and_is_started_again(make_queue, start_worker, until, monkeypatch):
    monkeypatch.setattr("gpuqueue.worker.services.AGAIN_S", 0.05)
    tries = []

    class Failing:
        @hookimpl
        def register_services(self, details):
            return {"failing": self.run}

        def run(self, context):
            tries.append(context.gq.services()[0].status)
            raise OSError("no route")

    gq = make_queue(plugins={"failing": Failing()})
    start_worker(gq)
    until(lambda: len(tries) > 1, "it is tried again")
    assert tries[1] == {"error": "OSError: no route"}


def test_one_whose_lease_another_took_is_told_to_stop(make_queue, start_worker, until, monkeypatch):
    monkeypatch.setattr("gpuqueue.worker.services.SERVICE_LEASE_S", 0.4)
    plugin = Counting()
    gq = make_queue(plugins={"counting": plugin})
    start_worker(gq)
    until(lambda: plugin.terms, "it runs")
    gq.store.engine.writer.run(lambda connection: connection.execute("UPDATE services SET term = term + 1"))
    assert plugin.ended.wait(DEADLINE_S)
    until(lambda: len(plugin.terms) > 1, "it takes it again, in a later term")
    assert plugin.terms[1] == 3


KILLED = """
import sys, threading
from gpuqueue import GPUQueue, Worker, hookimpl
class Holding:
    @hookimpl
    def register_services(self, details):
        return {"counting": self.run}
    def run(self, context):
        print("runs", flush=True)
        context.stopping.wait()
Worker(GPUQueue(sys.argv[1], plugins={"counting": Holding()})).run()
"""


def test_the_service_of_a_worker_that_was_killed_is_taken_over(make_queue, start_worker, until, tmp_path):
    plugin = Counting()
    gq = make_queue(plugins={"counting": plugin})
    with started([sys.executable, "-c", KILLED, str(gq.database)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "runs\n"
        start_worker(gq)
        assert plugin.terms == []
        os.kill(holder.pid, 9)
    until(lambda: plugin.terms == [2], "it is taken over")


def test_a_step_of_the_clock_takes_no_service_over_but_a_silent_lease_does(gq):
    """By rows alone: the other worker extends, then does so no more."""
    services, now_us = gq.store.services, gq.now_us()
    for name in ("one", "two"):
        assert gq.store.workers.register(
            name, host="far", pid=1, runtime_dir="/nowhere", queues=None, digest="d", expires_at_us=now_us + 1, now_us=now_us
        )
    term = services.take("counting", "one", expires_at_us=now_us + 1, now_us=now_us)
    later_us = now_us + 10**12
    assert services.take("counting", "two", expires_at_us=later_us, now_us=later_us) is None
    before = (term, now_us + 1)
    assert services.extend("counting", term, expires_at_us=now_us + 1), "under a clock that stands still"
    assert services.take("counting", "two", silent=before, expires_at_us=later_us, now_us=later_us) is None
    assert services.take("counting", "two", silent=(term, now_us + 2), expires_at_us=later_us, now_us=later_us) == term + 1
    assert not services.extend("counting", term, expires_at_us=later_us)
