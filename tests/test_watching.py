"""Watching a job and following its log: what is yielded and when it ends; and acting on many jobs from a client."""

from __future__ import annotations

import asyncio

import pytest

from gpuqueue import Cancellation, State, UnknownJob, UnknownQueue, current_job
from gpuqueue.domain.verdicts import Retry
from gpuqueue.testing.waiting import DEADLINE_S


@pytest.fixture
def steps(gq, make_gate):
    """A task that logs, waits at a gate, logs again; and its two gates."""
    gates = [make_gate(), make_gate()]

    @gq.task(name="steps", queue="work", max_attempts=2)
    def steps(ending: str = "well") -> None:
        job = current_job()
        for number, gate in enumerate(gates, 1):
            job.log(f"step {number}")
            job.progress(number / 4)
            gate.pass_through()
        if ending == "badly":
            raise RuntimeError("no more")
        if ending == "again" and job.attempt == 1:
            raise Retry(after=0, reason="not yet")

    steps.gates = gates
    return steps


def test_a_watched_job_is_yielded_until_it_is_finished(gq, steps, start_worker):
    start_worker(gq)
    job = steps.enqueue()
    seen = []
    for record in job.watch(timeout_s=DEADLINE_S):
        seen.append((str(record.state), record.progress))
        if record.progress is not None:
            steps.gates[0 if record.progress == 0.25 else 1].open()
    assert seen[-1][0] == "completed"
    assert {("running", 0.25), ("running", 0.5)} <= set(seen)
    assert [str(record.state) for record in job.watch(timeout_s=DEADLINE_S)] == ["completed"]


def test_who_waits_for_a_job_that_runs_looks_only_when_there_is_news(gq, steps, start_worker):
    start_worker(gq)
    job = steps.enqueue()
    steps.gates[0].wait_reached()
    looks = 0
    with pytest.raises(TimeoutError):
        for _ in job.watch(timeout_s=1.5):  # longer than a caller waits before it asks for a worker
            looks += 1
    assert looks < 100, "thousands, when it asks without a rest"


def test_a_watch_gives_up_in_time_and_leaves_the_job(gq, steps):
    job = steps.enqueue()
    seen = []
    with pytest.raises(TimeoutError, match="the job was not cancelled"):
        for record in job.watch(timeout_s=0.05):
            seen.append(record.state)
    assert seen[0] == State.AVAILABLE
    assert job.refresh().state == State.AVAILABLE
    assert list((gq.store.runtime_dir / "waiters").iterdir()) == []


def test_watching_a_job_of_a_rejecting_queue_does_not_have_it_refused(make_queue):
    gq = make_queue('[ollama]\n[gpu]\nbudget = "5GB"\n[queues.ai]\ngpu = true\nwhen_unavailable = "reject"\n')
    job = gq.ollama.generate("m", prompt="p", queue="ai")
    with pytest.raises(TimeoutError):
        for _ in job.watch(timeout_s=0.8):  # a waiting caller has it refused after half a second
            pass
    assert job.refresh().state == State.AVAILABLE


def test_an_unknown_job_cannot_be_watched(gq, steps):
    job = steps.enqueue()
    job.cancel()
    steps.enqueue()
    gq.store.jobs.prune_all(State.CANCELLED, before_us=gq.now_us() + 1)
    with pytest.raises(UnknownJob):
        next(job.watch(timeout_s=DEADLINE_S))


def test_log_lines_come_as_they_are_logged(gq, steps, start_worker):
    start_worker(gq)
    lines = steps.enqueue().follow_logs(timeout_s=DEADLINE_S)
    for number, gate in enumerate(steps.gates, 1):
        assert next(lines).message == f"step {number}"
        gate.open()
    assert list(lines) == []


@pytest.mark.parametrize("ending", ["well", "badly"])
def test_following_ends_with_the_job_however_it_ends(gq, steps, start_worker, ending):
    for gate in steps.gates:
        gate.open()
    start_worker(gq)
    job = steps.using(max_attempts=1).enqueue(ending=ending)
    assert [line.message for line in job.follow_logs(timeout_s=DEADLINE_S)] == ["step 1", "step 2"]


def test_following_goes_on_behind_a_line_and_through_attempts(gq, steps, start_worker):
    for gate in steps.gates:
        gate.open()
    start_worker(gq)
    job = steps.enqueue(ending="again")
    lines = list(job.follow_logs(timeout_s=DEADLINE_S))
    assert [(line.message, line.lease) for line in lines] == [("step 1", 1), ("step 2", 1), ("step 1", 2), ("step 2", 2)]
    assert [line.seq for line in job.follow_logs(after=lines[1].seq)] == [lines[2].seq, lines[3].seq]


def test_the_async_twins_do_the_same(gq, steps, start_worker):
    async def story():
        job = await steps.aenqueue()
        start_worker(gq)
        followed = []
        async for line in job.afollow_logs(timeout_s=DEADLINE_S):
            followed.append(line.message)
            steps.gates[len(followed) - 1].open()
        assert followed == ["step 1", "step 2"]
        assert [record.state async for record in job.awatch(timeout_s=DEADLINE_S)] == ["completed"]
        failed = await steps.using(max_attempts=1).aenqueue(ending="badly")
        assert [record.state async for record in failed.awatch(timeout_s=DEADLINE_S)][-1] == "discarded"
        assert await gq.aretry_failed("work") == 1
        await gq.apause("work")
        waiting = await steps.using(delay="1h").aenqueue()
        assert (await gq.acancel_all("work")).cancelled_count >= 1
        assert (await waiting.arefresh()).state == "cancelled"

    asyncio.run(asyncio.wait_for(story(), DEADLINE_S))


def test_all_failed_jobs_are_retried_and_run(gq, start_worker):
    broken = True

    @gq.task(name="flaky", queue="work", max_attempts=1)
    def flaky() -> str:
        if broken:
            raise RuntimeError("no")
        return "well"

    start_worker(gq)
    jobs = [flaky.enqueue() for _ in range(3)]
    for job in jobs:
        assert list(job.watch(timeout_s=DEADLINE_S))[-1].state == State.DISCARDED
    broken = False
    assert gq.retry_failed("work") == 3
    assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == ["well"] * 3
    assert gq.retry_failed() == 0


def test_all_of_a_queue_is_cancelled_also_what_runs(gq, start_worker, gate, until):
    @gq.task(name="long", queue="work")
    def long() -> None:
        gate.pass_through()
        until(lambda: current_job().cancelled)
        current_job().check()

    start_worker(gq, threads=1)
    running, waiting = long.enqueue(), long.enqueue()
    gate.wait_reached()
    assert gq.cancel_all("work") == Cancellation(cancelled_count=1, asked_to_stop_count=1)
    gate.open()
    assert list(running.watch(timeout_s=DEADLINE_S))[-1].state == State.CANCELLED
    assert waiting.refresh().state == State.CANCELLED


@pytest.mark.parametrize("call", ["retry_failed", "cancel_all"])
def test_a_queue_that_is_not_there_is_named(gq, steps, call):
    with pytest.raises(UnknownQueue, match="'wrok'"):
        getattr(gq, call)("wrok")
