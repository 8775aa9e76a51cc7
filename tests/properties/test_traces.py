"""Whatever comes to a card, in whatever order: each job ends in time, none is passed for too long, nothing stays reserved."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, seed, settings

from gpuqueue import JobHandle, State
from gpuqueue.testing.virtual import VirtualQueue, VirtualTime
from tests.benchmarks.scheduling.hours import GEMMA, NOMIC, Arrival
from tests.benchmarks.scheduling.play import SCHEMES, SHIPPED, play
from tests.properties.traces import DECIDED_S, Trace, traces
from tests.sampling import seed_of

PLAYED, LONG_PLAYED, PARTS = 25, 300, 8


class Ending:
    """Keeps what a trace's jobs have become, and what is still reserved."""

    def __init__(self) -> None:
        self.jobs: list[JobHandle] = []
        self.starts_s: list[list[float]] = []
        self.ends_s: list[float | None] = []
        self.reserved_bytes = 0

    def begin(self, gq: VirtualQueue, time: VirtualTime) -> None:
        self._gq, self._began = gq, time.clock.now()

    def enqueued(self, job: JobHandle) -> None:
        self.jobs.append(job)

    def end(self) -> None:
        self.reserved_bytes = sum(item.reserved_bytes for item in self._gq.view().devices["gpu0"].reservations)
        with self._gq.store.reading() as reads:
            for job in self.jobs:
                record = reads.job(job.id)
                began = {attempt["started_at"] for attempt in reads.timeline(job.id)} | {record.started_at}
                self.starts_s.append(sorted((at - self._began).total_seconds() for at in began if at is not None))
                ended = record.finished_at if record.state is State.COMPLETED else None
                self.ends_s.append(None if ended is None else (ended - self._began).total_seconds())


def check(trace: Trace) -> None:
    """Play a trace, and see that everything is as promised."""
    ending = Ending()
    played = play(trace.hour(), SCHEMES[SHIPPED], seed=trace.seed, prompt_cache=trace.prompt_cache, observer=ending)
    assert len(ending.jobs) == len(trace.arrivals)
    for arrival, end_s, bound_s in zip(trace.arrivals, ending.ends_s, trace.ends_s(), strict=True):
        assert end_s is not None, f"{arrival} has not ended"
        assert end_s <= bound_s, f"{arrival} ended at {end_s:.1f} s, and must have by {bound_s:.1f} s"
    assert ending.reserved_bytes == 0
    assert (played.overlap_count, played.over_budget_bytes, played.paused_starts) == (0, 0, 0)
    see_that_none_is_passed_for_too_long(trace, ending.starts_s, ending.ends_s)


def see_that_none_is_passed_for_too_long(trace: Trace, starts_s: list[list[float]], ends_s: list[float | None]) -> None:
    """Once all that could go before a job have ended, later ones of its queue start before it for `affinity` at most."""
    for number, (arrival, mine) in enumerate(zip(trace.arrivals, starts_s, strict=True)):
        yields = [name for name, queue in trace.queues.items() if arrival.queue in queue.get("yields_to", ())]
        older = [
            end_s for other, end_s in zip(trace.arrivals[:number], ends_s[:number], strict=True) if other.queue not in yields
        ]
        oldest_since_s = max((end_s for end_s in older if end_s is not None), default=0.0)
        passing = [
            at_s
            for other, begun in zip(trace.arrivals[number + 1 :], starts_s[number + 1 :], strict=True)
            for at_s in begun
            if other.queue == arrival.queue and oldest_since_s < at_s < mine[0]
        ]
        passed_s = max(passing) - min(passing) if passing else 0.0
        assert passed_s <= trace.affinity_s + DECIDED_S, f"{arrival} was passed for {passed_s:.1f} s"


def test_each_job_of_a_trace_ends_and_none_is_passed_for_too_long(request: pytest.FixtureRequest) -> None:
    _play_drawn(seed_of(request.config), PLAYED)


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_each_job_of_many_traces_ends_and_none_is_passed_for_too_long(request: pytest.FixtureRequest, part: int) -> None:
    _play_drawn(seed_of(request.config) + 1 + part, LONG_PLAYED)


def test_a_job_is_passed_for_affinity_at_most_also_while_an_older_job_waits_that_yields() -> None:
    batch = Arrival(0.0, "second", GEMMA, 300, 40 * 60)
    others = [Arrival(5.0 + number, "first", GEMMA, 300, 20 * 60) for number in range(6)]
    trace = Trace(
        queues={"first": {}, "second": {"yields_to": ["first"]}},
        gpu={"affinity": "30s"},
        restarts=frozenset(),
        arrivals=(batch, Arrival(4.0, "first", GEMMA, 20, 60), Arrival(4.5, "first", NOMIC, 20, 0), *others),
        prompt_cache=True,
        seed=1,
    )
    check(trace)


def _play_drawn(seed_number: int, count: int) -> None:
    @seed(seed_number)
    @settings(max_examples=count, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck))
    @given(traces())
    def played(trace: Trace) -> None:
        check(trace)

    played()
