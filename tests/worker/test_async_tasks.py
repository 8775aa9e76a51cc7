"""Asynchronous tasks: side by side on one event loop, stopped by CancelledError, and named when they block it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress

import httpx
import pytest

from gpuqueue import JobCancelled, JobFailed, Retry, current_job
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S


class Meeting:
    """A place on the event loop where coroutines wait until so many have come."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._come = 0
        self._all_here: asyncio.Event | None = None
        self.threads: set[int] = set()

    async def join(self) -> None:
        self._all_here = self._all_here or asyncio.Event()
        self._come += 1
        self.threads.add(threading.get_ident())
        if self._come == self._size:
            self._all_here.set()
        await asyncio.wait_for(self._all_here.wait(), DEADLINE_S)


def test_two_hundred_jobs_wait_on_http_at_once_without_a_thread_each(make_queue, start_worker):
    gq = make_queue("[worker]\nthreads = 2\n")
    meeting = Meeting(200)
    thread_counts = []

    with OllamaSimulator() as ollama:

        @gq.task(name="ask")
        async def ask(number: int) -> int:
            async with httpx.AsyncClient(timeout=DEADLINE_S, verify=False) as client:  # certificates take 20 ms
                request = client.build_request("GET", f"{ollama.url}/api/version")
                await meeting.join()  # all 200 are running now
                thread_counts.append(threading.active_count())
                answer = await client.send(request)
            return number if answer.status_code == 200 else -1

        before = threading.active_count()
        start_worker(gq)
        jobs = gq.enqueue_many([(ask, {"number": number}) for number in range(200)])
        assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == list(range(200))
    assert len(meeting.threads) == 1
    # The worker's own threads, and those of the simulated server for its connections, but none for each job.
    assert thread_counts[0] - before < 20


def test_no_more_run_at_once_than_the_worker_was_told(make_queue, start_worker, until):
    gq = make_queue("[worker]\nasync_jobs = 3\n")
    most, now = [], []

    @gq.task(name="work")
    async def work() -> None:
        now.append(1)
        most.append(len(now))
        for _ in range(5):
            await asyncio.sleep(0)
        now.pop()

    start_worker(gq)
    for job in gq.enqueue_many([(work, {})] * 40):
        job.result(timeout_s=DEADLINE_S)
    assert max(most) == 3


def test_plain_and_asynchronous_jobs_of_one_queue_each_find_their_place(gq, start_worker, gate):
    order = []

    @gq.task(name="plain")
    def plain(number: int) -> None:
        order.append(number)

    @gq.task(name="waiting")
    async def waiting(number: int) -> None:
        await asyncio.sleep(0)
        order.append(number)

    @gq.task(name="blocker")
    def blocker() -> None:
        gate.pass_through()

    start_worker(gq, threads=1)
    blocked = blocker.enqueue()
    gate.wait_reached()
    # The only thread is taken: an asynchronous job runs all the same, one behind a plain job keeps its place.
    waiting.enqueue(number=1).result(timeout_s=DEADLINE_S)
    mixed = [plain.enqueue(number=2), waiting.enqueue(number=3)]
    with pytest.raises(TimeoutError):
        mixed[1].result(timeout_s=0.3)
    gate.open()
    for job in (blocked, *mixed):
        job.result(timeout_s=DEADLINE_S)
    assert order[0] == 1
    assert sorted(order) == [1, 2, 3]


def test_an_asynchronous_task_knows_its_job(gq, start_worker):
    @gq.task(name="look", max_attempts=2)
    async def look() -> list:
        await asyncio.sleep(0)
        current_job().progress(0.5, note="half")
        current_job().log("a line")
        current_job().emit("text")

        async def child() -> int:
            return current_job().id

        return [current_job().id, *await asyncio.gather(child(), child())]

    start_worker(gq)
    jobs = [look.enqueue() for _ in range(20)]
    assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == [[job.id] * 3 for job in jobs]
    assert ["".join(job.stream(timeout_s=DEADLINE_S)) for job in jobs] == ["text"] * 20
    assert [line.message for line in jobs[7].logs()] == ["a line"]
    assert jobs[7].refresh().progress == 0.5


class Sleeper:
    """An asynchronous task that waits for ever and tells how it was stopped."""

    def __init__(self, gq, **settings):
        self.began = threading.Event()
        self.told: list[str] = []
        self.task = gq.task(name="sleep", **settings)(self.sleep)

    async def sleep(self) -> None:
        self.began.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.told.append(f"cancelled, {current_job().cancelled}")
            raise

    def wait_began(self):
        assert self.began.wait(DEADLINE_S)


def test_a_cancel_from_outside_raises_cancelled_error_in_the_task(make_queue, start_worker):
    gq = make_queue()
    sleeper = Sleeper(gq)
    start_worker(gq)
    job = sleeper.task.enqueue()
    sleeper.wait_began()
    make_queue().job(job.id).cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)
    assert sleeper.told == ["cancelled, True"]


def test_a_deadline_raises_cancelled_error_in_the_task(gq, start_worker):
    sleeper = Sleeper(gq, timeout="1s")
    start_worker(gq)
    with pytest.raises(JobFailed, match="ran longer than its timeout of 1 s"):
        sleeper.task.enqueue().result(timeout_s=DEADLINE_S)
    assert sleeper.told == ["cancelled, True"]


def test_a_shutdown_gives_the_job_back_unspent(gq, start_worker):
    sleeper = Sleeper(gq)
    worker = start_worker(gq)
    job = sleeper.task.enqueue()
    sleeper.wait_began()
    worker.stop(grace_s=0)
    assert (job.refresh().state, job.attempt) == ("available", 0)
    assert sleeper.told == ["cancelled, True"]


def test_a_task_that_swallows_its_cancellation_is_given_up_and_leaves_room(make_queue, start_worker, make_gate):
    gq = make_queue("[worker]\nasync_jobs = 1\n")
    began, end = make_gate(), make_gate()

    @gq.task(name="deaf")
    async def deaf() -> None:
        began.reached.set()
        while not end.opened.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    @gq.task(name="noop")
    async def noop() -> int:
        return 7

    start_worker(gq)
    job = deaf.enqueue()
    began.wait_reached()
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)
    assert noop.enqueue().result(timeout_s=DEADLINE_S) == 7


def test_a_cancellation_of_the_tasks_own_making_is_its_failure(gq, start_worker):
    @gq.task(name="odd")
    async def odd() -> None:
        raise asyncio.CancelledError("of its own")

    start_worker(gq)
    with pytest.raises(JobFailed, match="CancelledError: of its own"):
        odd.enqueue().result(timeout_s=DEADLINE_S)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), RuntimeError("no")])
def test_whatever_a_task_raises_ends_the_job_and_not_the_loop(gq, start_worker, error):
    @gq.task(name="raise")
    async def raises() -> None:
        raise error

    @gq.task(name="noop")
    async def noop() -> int:
        return 7

    start_worker(gq)
    with pytest.raises(JobFailed, match=type(error).__name__):
        raises.enqueue().result(timeout_s=DEADLINE_S)
    assert noop.enqueue().result(timeout_s=DEADLINE_S) == 7


def test_an_asynchronous_task_decides_what_becomes_of_its_attempt(gq, start_worker, until):
    @gq.task(name="later", max_attempts=2)
    async def later() -> int:
        if current_job().attempt == 1:
            raise Retry(0)
        return 7

    start_worker(gq)
    assert later.enqueue().result(timeout_s=DEADLINE_S) == 7


def test_a_burst_ends_when_the_last_asynchronous_job_has_ended(gq, start_worker):
    from gpuqueue import Worker

    @gq.task(name="work")
    async def work() -> int:
        await asyncio.sleep(0.05)
        return 7

    jobs = [work.enqueue() for _ in range(3)]
    Worker(gq, burst=True).run()
    assert [job.refresh().state for job in jobs] == ["completed"] * 3


def test_an_asynchronous_task_of_a_gpu_queue_runs_on_the_loop_too(make_queue, start_worker):
    gq = make_queue('[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\nbackend = "none"\n')
    threads = set()

    @gq.task(name="train", queue="train")
    async def train() -> str:
        threads.add(threading.current_thread().name)
        await asyncio.sleep(0)
        return "trained"

    start_worker(gq)
    jobs = [train.enqueue() for _ in range(3)]
    assert [job.result(timeout_s=DEADLINE_S) for job in jobs] == ["trained"] * 3
    assert threads == {"gpuqueue-event-loop"}


def test_what_blocks_the_event_loop_is_named_with_its_file_and_line(gq, start_worker, caplog, until, make_gate):
    gate = make_gate()

    @gq.task(name="block")
    async def block() -> None:
        await asyncio.sleep(0)
        gate.pass_through()  # this blocks the loop

    with caplog.at_level(logging.WARNING, logger="gpuqueue.worker"):
        start_worker(gq)
        job = block.enqueue()
        told = until(lambda: [record.getMessage() for record in caplog.records if "blocks" in record.getMessage()], "a warning")
        gate.open()
        job.result(timeout_s=DEADLINE_S)
    assert f"job {job.id} (block) has blocked the event loop" in told[0]
    line = block.function.__code__.co_firstlineno + 3
    assert f"{__file__}:{line}: gate.pass_through()  # this blocks the loop, stuck in" in told[0]
    assert "asyncio.to_thread" in told[0]
    assert len(told) == 1


def test_a_task_that_only_waits_is_not_accused(gq, start_worker, caplog):
    @gq.task(name="wait")
    async def wait() -> None:
        for _ in range(10):
            await asyncio.sleep(0.1)

    with caplog.at_level(logging.WARNING, logger="gpuqueue.worker"):
        start_worker(gq)
        wait.enqueue().result(timeout_s=DEADLINE_S)
    assert "blocks" not in caplog.text


def test_a_task_that_is_registered_after_the_start_waits_for_the_loop_in_a_thread(gq, start_worker, gate):
    @gq.task(name="known", queue="others")
    async def known() -> str:
        return threading.current_thread().name

    @gq.task(name="blocker")
    def blocker() -> None:
        gate.pass_through()

    start_worker(gq, threads=1)
    blocked = blocker.enqueue()
    gate.wait_reached()

    @gq.task(name="late")
    async def late() -> str:
        return threading.current_thread().name

    waits = late.enqueue()
    assert known.enqueue().result(timeout_s=DEADLINE_S) == "gpuqueue-event-loop"
    assert waits.refresh().state == "available"  # the only thread is taken
    gate.open()
    assert [blocked.result(timeout_s=DEADLINE_S), waits.result(timeout_s=DEADLINE_S)] == [None, "gpuqueue-event-loop"]


def test_a_task_that_is_registered_anew_as_a_plain_function_runs_in_a_thread(gq, start_worker):
    def define(source: str) -> None:
        exec(source, {"__name__": __name__, "threading": threading, "gq": gq})

    body = "def work():\n    return threading.current_thread().name\n"
    define(f'@gq.task(name="work")\nasync {body}')
    start_worker(gq)
    assert gq.enqueue("work").result(timeout_s=DEADLINE_S) == "gpuqueue-event-loop"
    define(f'@gq.task(name="work")\n{body}')
    assert gq.enqueue("work").result(timeout_s=DEADLINE_S).startswith("gpuqueue-job-")


def test_an_event_loop_costs_nothing_where_no_task_needs_it(gq, start_worker):
    @gq.task(name="plain")
    def plain() -> None:
        time.monotonic()

    start_worker(gq)
    plain.enqueue().result(timeout_s=DEADLINE_S)
    assert "gpuqueue-event-loop" not in {thread.name for thread in threading.enumerate()}


async def stops(loop: asyncio.AbstractEventLoop) -> None:
    loop.stop()


async def stops_later(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(loop.stop)
    await asyncio.sleep(0)


async def closes(loop: asyncio.AbstractEventLoop) -> None:
    loop.close()


async def exits_elsewhere(loop: asyncio.AbstractEventLoop) -> None:
    async def leave() -> None:
        raise SystemExit(3)

    await asyncio.gather(asyncio.create_task(leave()), return_exceptions=True)


async def exits_in_a_callback(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon(exit)
    await asyncio.sleep(0)


@pytest.mark.parametrize("harm", [stops, stops_later, closes, exits_elsewhere, exits_in_a_callback])
def test_no_task_ends_the_loop_that_others_share(gq, start_worker, harm):
    meeting = Meeting(2)

    @gq.task(name="harm", max_attempts=1)
    async def does_harm() -> None:
        await meeting.join()
        await harm(asyncio.get_running_loop())

    @gq.task(name="fine")
    async def fine() -> int:
        await meeting.join()
        await asyncio.sleep(0.05)  # on the loop while the other one harms it
        return 7

    worker = start_worker(gq)
    neighbour, bad = fine.enqueue(), does_harm.enqueue()
    assert neighbour.result(timeout_s=DEADLINE_S) == 7
    with suppress(JobFailed):
        bad.result(timeout_s=DEADLINE_S)
    later = fine.enqueue(), fine.enqueue()
    assert [job.result(timeout_s=DEADLINE_S) for job in later] == [7, 7]
    worker.stop()


@pytest.mark.parametrize("method", ["stop", "shutdown_default_executor"])
def test_a_task_that_ends_the_loop_or_its_threads_is_named_and_refused(gq, start_worker, method):
    @gq.task(name="rude", max_attempts=1)
    async def rude() -> None:
        getattr(asyncio.get_running_loop(), method)()

    @gq.task(name="polite")
    async def polite() -> int:
        return await asyncio.to_thread(int, "7")

    start_worker(gq)
    job = rude.enqueue()
    with pytest.raises(
        JobFailed, match=rf"job {job.id} \(rude\) called {method}\(\) on the worker's event loop, which other jobs share"
    ):
        job.result(timeout_s=DEADLINE_S)
    assert polite.enqueue().result(timeout_s=DEADLINE_S) == 7
