"""One outcome or one attempt's output that cannot be written costs no other: each is written on its own, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpuqueue import GPUQueue
from gpuqueue.domain.claim import Capacity, ClaimRules
from gpuqueue.domain.errors import StoreFull
from gpuqueue.domain.job import Lease
from gpuqueue.domain.outcomes import Completed
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.worker.attempts import Attempts
from gpuqueue.worker.backends import Backends
from gpuqueue.worker.clock import Clock
from gpuqueue.worker.dispatcher import Dispatcher
from gpuqueue.worker.exchange import Exchange
from gpuqueue.worker.judge import Judge
from gpuqueue.worker.log import WorkerLog
from gpuqueue.worker.orders import Orders
from gpuqueue.worker.output import Output
from gpuqueue.worker.site import Site

WORKER = "w"
HALF = "\ud83d"  # SQLite cannot store it: what reaches the store has been made safe, so this stands for a fault in that


class Full:
    """A runner that takes no job."""

    is_idle = True

    def room(self) -> int:
        return 0

    def take(self, leases: object) -> None:
        raise AssertionError


class Parts:
    """The parts of a worker that write, and three jobs that it runs."""

    def __init__(self, gq: GPUQueue) -> None:
        self.gq = gq
        gq.task(name="work", max_attempts=2)(lambda: None)
        self.jobs = [gq.enqueue("work") for _ in range(3)]
        clock, orders = Clock(wall=gq.now_us), Orders()
        site = Site(WORKER, gq.store, gq.plugins, gq.own_settings(), clock, WorkerLog(WORKER))
        self.output = Output(gq.store, clock, orders)
        judge = Judge(site, Backends(site), tasks=gq.tasks, max_payload_bytes=10_000, max_crashes=3)
        self.attempts = Attempts(site, judge, self.output, orders)
        dispatcher = Dispatcher(
            site,
            may_claim=lambda: True,
            models_known=lambda: True,
            is_preemptible=lambda _: False,
            continues=lambda _: False,
            where_alone=lambda _: None,
        )
        self.exchange = Exchange(
            site, dispatcher, orders, may_claim=lambda: True, asynchronous=frozenset, internal=judge.internal
        )
        self.exchange.claim_for(Full(), Full())
        gq.store.workers.register(
            WORKER,
            host="here",
            pid=1,
            queues=None,
            digest="",
            runtime_dir="",
            expires_at_us=gq.now_us() + 60_000_000,
            now_us=gq.now_us(),
        )
        _, self.leases = gq.store.attempts.finish_and_claim(
            [],
            worker_id=WORKER,
            queues=(QueueSettings("default"),),
            rules=ClaimRules(),
            capacity=Capacity(3),
            now_us=gq.now_us(),
        )

    def states(self) -> list[str]:
        return [str(job.refresh().state) for job in self.jobs]


@pytest.fixture
def parts(gq: GPUQueue) -> Iterator[Parts]:
    yield Parts(gq)


def test_an_outcome_that_cannot_be_written_is_replaced_and_its_neighbours_are_written(parts: Parts) -> None:
    good, bad, other = parts.leases
    for outcome in (Completed(good, "1"), Completed(bad, HALF), Completed(other, "2")):
        parts.exchange.add(outcome)
    with pytest.raises(UnicodeEncodeError):
        parts.exchange.exchange()
    assert parts.states() == ["completed", "retryable", "completed"]
    assert parts.jobs[1].error.code == "internal"
    assert "UnicodeEncodeError" in parts.jobs[1].error.message
    assert parts.exchange.is_idle


def test_outcomes_are_kept_while_the_store_cannot_take_them(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreFull("the disk is full")

    for lease in parts.leases:
        parts.exchange.add(Completed(lease, "1"))
    with monkeypatch.context() as patch:
        patch.setattr(parts.gq.store.attempts, "finish_and_claim", full)
        parts.exchange.exchange_or_keep()
    assert parts.states() == ["running"] * 3
    assert not parts.exchange.is_idle
    parts.exchange.exchange()
    assert parts.states() == ["completed"] * 3


def test_output_that_cannot_be_written_is_dropped_and_its_neighbours_are_written(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad, other = parts.leases
    for lease, text in ((good, "one "), (bad, HALF), (other, "two ")):
        parts.output.emit(lease, text)
    parts.output.start()
    parts.output.flush(good)
    parts.output.stop()
    assert [said(parts.gq, lease) for lease in parts.leases] == ["one ", "", "two "]
    assert f"output of job {bad.job_id} cannot be written and is dropped: UnicodeEncodeError" in caplog.text


def test_output_is_kept_whatever_was_raised_while_writing_it(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupt(BaseException):
        pass

    def interrupted(_reports: object) -> None:
        raise Interrupt

    lease = parts.leases[0]
    parts.output.emit(lease, "one ")
    with monkeypatch.context() as patch:
        patch.setattr(parts.gq.store.attempts, "report", interrupted)
        with pytest.raises(Interrupt):
            parts.output.flush(lease)
    parts.output.emit(lease, "two")
    parts.output.flush(lease)
    assert said(parts.gq, lease) == "one two"


def said(gq: GPUQueue, lease: Lease) -> str:
    with gq.store.reading() as reads:
        return "".join(text for _seq, _lease, text in reads.chunks(lease.job_id, 0))
