"""A wall clock that steps, or that of another machine, ends no worker's lease and prolongs no hold."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpuqueue import ConfigurationError, GPUQueue
from gpuqueue.config.shared import settings_digest
from gpuqueue.testing import travel
from gpuqueue.testing.waiting import DEADLINE_S

TOML = "[queues.here]\n[queues.there]\n"


def worker_ids(gq: GPUQueue) -> set[str]:
    with gq.store.reading() as reads:
        return {row.info.id for row in reads.workers(now_us=0)}


def register_silent(gq: GPUQueue, name: str) -> None:
    """Register a worker of another host with no lease at all, which the next look finds silent."""
    now_us = gq.now_us()
    assert gq.store.workers.register(
        name,
        host="far",
        pid=1,
        runtime_dir="/nowhere",
        queues=(),
        digest=settings_digest(gq.shared()),
        expires_at_us=now_us,
        now_us=now_us,
    )


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(hours=-1)], ids=["forward", "back"])
def test_a_step_of_the_clock_makes_no_living_worker_dead(make_queue, start_worker, gate, until, step):
    """Each of two workers looks at the other by a clock that is an hour away from the other's."""
    here, there = make_queue(TOML), make_queue(TOML)

    @here.task(name="work", queue="here")
    def work() -> int:
        gate.pass_through()
        return 1

    working = start_worker(here, queues=["here"])
    job = work.enqueue()
    gate.wait_reached()
    with travel(there, there.now() + step):
        other = start_worker(there, queues=["there"])
        for name in ("first", "second"):  # both have looked at all workers, and once more
            register_silent(there, name)
            until(lambda name=name: name not in worker_ids(there), "a silent worker is rescued")
        assert worker_ids(here) == {working.id, other.id}
        assert {worker.id for worker in there.workers()} >= {other.id}
        gate.open()
        assert job.result(timeout_s=DEADLINE_S) == 1
        assert job.refresh().record.lease == 1


def test_settings_are_agreed_with_a_worker_whose_lease_a_step_has_just_ended(make_queue, start_worker):
    start_worker(make_queue("[queues.mail]\nconcurrency = 1\n"))
    second = make_queue("[queues.mail]\nconcurrency = 2\n", name="second.toml")
    with travel(second, "1h"), pytest.raises(ConfigurationError, match="different settings"):
        start_worker(second)


def test_a_worker_that_holds_its_file_is_shown_while_a_step_has_just_ended_its_lease(gq, start_worker):
    worker = start_worker(gq)
    with travel(gq, timedelta(seconds=45).total_seconds()):
        assert [found.id for found in gq.workers()] == [worker.id]
        assert gq.is_served("default")


def test_a_pause_does_not_outlast_its_length_when_the_clock_is_set_back(gq, start_worker, until):
    gq.queue("work")
    start_worker(gq)
    gq.pause("work", until="10m")
    with travel(gq, gq.now() - timedelta(days=1)):
        until(lambda: gq.view().queues["work"].paused.until <= gq.now() + timedelta(minutes=10), "the worker noticed")
