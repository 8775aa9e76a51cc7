"""Jobs that run at once where they are enqueued: what runs, in which thread, how it ends, and what waits all the same."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import ClassVar

import pytest

from gpuqueue import Discard, JobFailed, Retry, ServiceUnavailable, Snooze, UsageError, backoff, current_job, hookimpl
from gpuqueue.testing import eager, run_until_idle
from gpuqueue.testing.waiting import DEADLINE_S

seen: ContextVar[str] = ContextVar("seen")


@pytest.fixture
def add(gq):
    @gq.task(name="add")
    def add(a: int, b: int = 1) -> int:
        current_job().progress(0.5, note="half")
        current_job().emit("so far ")
        current_job().log(f"adding {a}")
        return a + b

    return add


def test_a_job_has_ended_when_enqueue_returns_and_says_all_that_it_said(gq, add):
    with eager(gq):
        job = add.enqueue(a=1)
        assert (job.state, job.attempt, job.progress) == ("completed", 1, 0.5)
        assert job.result(timeout_s=0) == 2
        assert list(job.stream(timeout_s=0)) == ["so far "]
        assert [line.message for line in job.logs()] == ["adding 1"]
    assert add.enqueue(a=2).state == "available"


def test_every_way_to_enqueue_runs_the_job(gq, add):
    async def enqueue():
        many = await gq.aenqueue_many([("add", {"a": 6})])
        return [await add.aenqueue(a=4), await gq.aenqueue("add", {"a": 5}), *many]

    with eager(gq):
        jobs = [
            add.enqueue(a=0),
            add.using(priority=5).enqueue(a=1),
            gq.enqueue("add", {"a": 2}),
            *gq.enqueue_many([(add, {"a": 3})]),
            *asyncio.run(enqueue()),
        ]
    assert [job.result(timeout_s=0) for job in jobs] == [1, 2, 3, 4, 5, 6, 7]


def test_a_job_runs_in_the_calling_thread_and_its_context(gq):
    gq.task(name="where")(lambda: [threading.current_thread().name, seen.get()])

    async def where() -> list[str]:
        await asyncio.sleep(0)
        return [threading.current_thread().name, seen.get()]

    task = gq.task(name="awhere")(where)
    seen.set("this test")
    with eager(gq):
        here = [threading.current_thread().name, "this test"]
        assert gq.enqueue("where").result(timeout_s=0) == here
        assert task.enqueue().result(timeout_s=0) == here


def test_an_asynchronous_job_that_is_enqueued_on_an_event_loop_runs_beside_it(gq):
    @gq.task(name="inner")
    async def inner() -> list[object]:
        await asyncio.sleep(0)
        return [current_job().task, seen.get()]

    @gq.task(name="outer")
    async def outer() -> list[object]:
        seen.set("outer")
        return [*inner.enqueue().result(timeout_s=0), current_job().task]

    with eager(gq):
        assert outer.enqueue().result(timeout_s=0) == ["inner", "outer", "outer"]


def test_a_job_that_a_job_enqueues_has_ended_before_its_own_goes_on(make_queue):
    gq = make_queue("[queues.default]\nconcurrency = 1\n")

    @gq.task(name="count")
    def count(number: int) -> int:
        below = count.enqueue(number=number - 1).result(timeout_s=0) if number else 0
        return below + current_job().id

    with eager(gq):
        assert count.enqueue(number=3).result(timeout_s=0) == 1 + 2 + 3 + 4


def test_a_failure_is_raised_by_result_and_by_enqueue_when_asked_for(gq):
    @gq.task(name="fail")
    def fail() -> None:
        raise LookupError("no such thing")

    with eager(gq):
        job = fail.enqueue()
        assert job.state == "discarded"
        with pytest.raises(JobFailed, match="no such thing"):
            job.result(timeout_s=0)
    with eager(gq, raises=True), pytest.raises(LookupError, match="no such thing"):
        fail.enqueue()
    assert gq.counts()["default"] == {"discarded": 2}


def test_a_result_that_is_no_json_is_a_failure_too(gq):
    gq.task(name="bad")(lambda: {1, 2})
    with eager(gq, raises=True), pytest.raises(JobFailed, match="the result of job 1"):
        gq.enqueue("bad")


def test_attempts_are_tried_again_without_their_wait_and_the_policies_are_asked(make_queue):
    class Hopeless:
        @hookimpl
        def attempt_failed(self, details):
            return Discard("hopeless") if isinstance(details.error, LookupError) else None

    gq = make_queue(plugins=[Hopeless()])
    attempts: list[int] = []

    @gq.task(name="learn", max_attempts=4, backoff=backoff.fixed("1h"))
    def learn(error: str) -> int:
        attempts.append(current_job().attempt)
        if current_job().attempt < 3:
            raise {"value": ValueError(), "retry": Retry("2h"), "lookup": LookupError()}[error]
        return len(attempts)

    with eager(gq):
        assert learn.enqueue(error="value").result(timeout_s=0) == 3
        assert learn.enqueue(error="retry").result(timeout_s=0) == 6
        with pytest.raises(JobFailed, match="hopeless"):
            learn.enqueue(error="lookup").result(timeout_s=0)
    assert attempts == [1, 2, 3, 1, 2, 3, 1]


def test_what_waits_for_a_time_waits(gq, add):
    @gq.task(name="snooze")
    def snooze() -> None:
        raise Snooze("1h")

    @gq.task(name="daily")
    def daily() -> None:
        daily.using(delay="1d").enqueue()

    with eager(gq):
        assert add.using(delay="1h").enqueue(a=1).state == "scheduled"
        assert snooze.enqueue().state == "retryable"
        assert daily.enqueue().state == "completed"
    assert gq.counts()["default"] == {"completed": 1, "retryable": 1, "scheduled": 2}


def test_no_window_pause_limit_or_device_holds_a_job(make_queue):
    gq = make_queue(
        '[gpu]\nbudget = "5GB"\n[ollama]\nurl = "http://127.0.0.1:9"\n'
        '[queues.train]\ngpu = true\nbackend = "none"\npause = ["00:00-12:00", "12:00-00:00"]\nrate = "1/d"\n'
    )
    gq.task(name="train", queue="train", vram="4GB")(lambda: 7)
    gq.pause("train")
    with eager(gq):
        assert [gq.enqueue("train").result(timeout_s=0) for _ in range(2)] == [7, 7]


def test_an_executor_of_a_plugin_runs_its_verb(make_queue):
    class Shout:
        def run(self, context):
            return context.lease.arguments["text"].upper()

    class Whisper:
        async def arun(self, context):
            return context.lease.arguments["text"].lower()

    class Verbs:
        @hookimpl
        def register_executors(self, details):
            return {"shout": Shout(), "whisper": Whisper()}

    gq = make_queue(plugins=[Verbs()])
    with eager(gq):
        assert gq.verb("shout").enqueue(text="Hey").result(timeout_s=0) == "HEY"
        assert gq.verb("whisper").enqueue(text="Hey").result(timeout_s=0) == "hey"
        with pytest.raises(UsageError, match="no function or executor for task 'unheard' of job 3"):
            gq.verb("unheard").enqueue()


def test_a_model_is_asked_where_it_is_and_one_that_is_away_ends_the_job_as_its_queue_says(ai):
    with eager(ai.gq):
        assert ai.realtime().result(timeout_s=0)["output_tokens"] == 5
        ai.ollama.go_away()
        with pytest.raises(ServiceUnavailable):
            ai.realtime().result(timeout_s=0)
        assert ai.batch().state == "retryable"


def test_a_job_of_a_sessions_transaction_runs_when_that_is_committed_and_not_at_all_when_it_is_rolled_back(gq, add):
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    gq.store.queues.ensure("default")
    engine = create_engine(f"sqlite:///{gq.database}")
    with eager(gq):
        with Session(engine) as session:
            job = add.using(connection=session).enqueue(a=1)
            session.commit()
            assert job.state == "completed"
            add.using(connection=session).enqueue(a=2)
            session.rollback()
            many = gq.enqueue_many([(add, {"a": 3}), (add, {"a": 4})], connection=session)
            session.commit()
            assert [job.result(timeout_s=0) for job in many] == [4, 5]
        assert gq.counts()["default"] == {"completed": 3}
    engine.dispose()


def test_a_job_that_somebody_else_was_faster_with_is_left_to_them(make_queue):
    class Verbs:
        @hookimpl
        def register_executors(self, details):
            gq.job(1).cancel()  # asked between the look at the job and its claim
            return {"shout": Shout()}

    class Shout:
        def run(self, context):
            raise AssertionError("it was cancelled")

    gq = make_queue(plugins=[Verbs()])
    with eager(gq):
        assert gq.verb("shout").enqueue().state == "cancelled"


def test_the_policies_know_a_queue_that_is_made_later(make_queue):
    class Failures:
        seen: ClassVar[list[str]] = []

        @hookimpl
        def attempt_failed(self, details):
            self.seen.append(details.queue.when_unavailable)

    gq = make_queue(plugins=[Failures()])
    fail = gq.task(name="fail")(lambda: 1 / 0)
    with eager(gq):
        fail.enqueue()
        gq.queue("later", when_unavailable="retry")
        fail.using(queue="later").enqueue()
    assert Failures.seen == ["wait", "retry"]


def test_what_ends_a_test_is_not_taken_for_a_jobs_failure(gq):
    gq.task(name="stop")(lambda: pytest.skip("here"))
    gq.task(name="exit")(lambda: exit(3))
    with eager(gq):
        with pytest.raises(pytest.skip.Exception):
            gq.enqueue("stop")
        assert gq.enqueue("exit").state == "discarded"


def test_threads_run_their_own_jobs_side_by_side(gq):
    both = threading.Barrier(2, timeout=DEADLINE_S)
    gq.task(name="meet")(lambda: both.wait() >= 0)
    results = []
    with eager(gq):
        threads = [threading.Thread(target=lambda: results.append(gq.enqueue("meet").result(timeout_s=0))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [True, True]


def test_it_can_be_nested_and_ends_with_its_block(gq, add):
    with eager(gq):
        with eager(gq):
            assert add.enqueue(a=1).attempt == 1
        assert add.enqueue(a=1).state == "completed"
    add.enqueue(a=1)
    run_until_idle(gq)
    assert gq.counts()["default"] == {"completed": 3}


def test_the_fixture_gives_the_queue_object_of_the_test(gpuqueue_eager, gpuqueue_db):
    assert gpuqueue_eager is gpuqueue_db
    assert gpuqueue_eager.task(name="one")(lambda: 1).enqueue().result(timeout_s=0) == 1
