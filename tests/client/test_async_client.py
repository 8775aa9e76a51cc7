"""The async twins: the same calls awaited, any number of waits at once, and an event loop that goes on meanwhile."""

from __future__ import annotations

import asyncio
import inspect
import threading

import pytest

from gpuqueue import GPUQueue, JobCancelled, JobFailed, JobHandle, ServiceUnavailable, Task, UnknownJob, current_job
from gpuqueue.client.ollama import OllamaTasks
from gpuqueue.testing.waiting import DEADLINE_S


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, DEADLINE_S))


@pytest.fixture
def add(gq):
    @gq.task(name="add", queue="work")
    def add(a: int, b: int = 1) -> int:
        return a + b

    return add


# --- there is a twin of all that blocks ---

BLOCKING = {
    GPUQueue: [
        "enqueue",
        "enqueue_many",
        "submit",
        "job",
        "jobs",
        "pause",
        "resume",
        "counts",
        "holds",
        "explain",
        "expected_ends",
        "expectations",
        "workers",
        "services",
        "retry_failed",
        "cancel_all",
    ],
    JobHandle: ["refresh", "result", "stream", "logs", "watch", "follow_logs", "cancel", "retry", "explain"],
    Task: ["enqueue"],
    OllamaTasks: ["generate", "chat", "embed"],
}


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in BLOCKING.items() for name in names])
def test_each_blocking_method_has_a_twin_with_the_same_arguments(owner, name):
    method, twin = getattr(owner, name), getattr(owner, f"a{name}")
    assert list(inspect.signature(twin).parameters.values()) == list(inspect.signature(method).parameters.values())
    assert twin.__name__ == f"a{name}"
    assert f"async twin of `{name}`" in twin.__doc__


@pytest.mark.parametrize("owner", BLOCKING)
def test_no_twin_is_left_out_of_the_list(owner):
    own = {name for name in vars(owner) if not name.startswith("_")}
    assert {name for name in own if f"a{name}" in own} == set(BLOCKING[owner])


# --- using them ---


def test_a_job_is_stored_awaited_found_and_explained(gq, add, start_worker):
    async def story():
        job = await add.aenqueue(a=1)
        by_name = await gq.aenqueue("add", {"a": 2}, priority=3)
        many = await gq.aenqueue_many([(add, {"a": 3}), {"task": "add", "arguments": {"a": 4}}])
        start_worker(gq)
        assert [await one.aresult(timeout_s=DEADLINE_S) for one in (job, by_name, *many)] == [2, 3, 4, 5]
        found = await gq.ajob(by_name.id)
        assert (found.state, found.record.priority) == ("completed", 3)
        assert [one.id for one in await gq.ajobs(queue="work")] == [many[1].id, many[0].id, by_name.id, job.id]
        assert (await gq.acounts())["work"] == {"completed": 4}
        assert "completed" in str(await gq.aexplain(job.id))
        assert len(await gq.aworkers()) == 1
        with pytest.raises(UnknownJob):
            await gq.ajob(999)

    run(story())


def test_pausing_cancelling_and_retrying(gq, add, start_worker):
    async def story():
        await gq.apause("work", reason="a break")
        job = await add.using(delay="1h").aenqueue(a=1)
        assert [hold.reason for hold in (await gq.aholds())["work"]] == ["paused"]
        assert await job.acancel()
        with pytest.raises(JobCancelled):
            await job.aresult(timeout_s=DEADLINE_S)
        assert (await (await job.aretry()).arefresh()).state == "available"
        assert "paused" in str(await job.aexplain())
        assert await gq.aresume("work")
        start_worker(gq)
        assert await job.aresult(timeout_s=DEADLINE_S) == 2

    run(story())


def test_hundreds_of_results_are_awaited_without_a_thread_each(gq, start_worker, gate):
    @gq.task(name="wait")
    def wait(number: int) -> int:
        gate.pass_through()
        return number

    start_worker(gq, threads=4)

    async def story():
        jobs = await gq.aenqueue_many([(wait, {"number": number}) for number in range(300)])
        before = threading.active_count()
        waiting = asyncio.gather(*(job.aresult(timeout_s=DEADLINE_S) for job in jobs))
        await asyncio.sleep(0)
        while not gate.reached.is_set():
            await asyncio.sleep(0.01)
        most = threading.active_count()
        gate.open()
        assert await waiting == list(range(300))
        assert most - before <= 32  # asyncio's own pool of threads, whatever the number of waits

    run(story())


def test_the_event_loop_goes_on_while_a_result_is_awaited(gq, start_worker, gate):
    @gq.task(name="wait")
    def wait() -> int:
        gate.pass_through()
        return 7

    start_worker(gq)

    async def story():
        waiting = asyncio.create_task((await wait.aenqueue()).aresult(timeout_s=DEADLINE_S))
        while not gate.reached.is_set():
            await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.open()  # from the loop itself, which a blocking wait would keep from coming here
        assert await waiting == 7

    run(story())


def test_a_wait_that_is_cancelled_leaves_the_job_alone(gq, start_worker, gate):
    @gq.task(name="wait")
    def wait() -> int:
        gate.pass_through()
        return 7

    start_worker(gq)

    async def story():
        job = await wait.aenqueue()
        waiting = asyncio.create_task(job.aresult())
        while not gate.reached.is_set():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError, match="the job was not cancelled"):
            await job.aresult(timeout_s=0.05)
        gate.open()
        assert await job.aresult(timeout_s=DEADLINE_S) == 7

    run(story())
    assert list((gq.store.runtime_dir / "waiters").iterdir()) == []


def test_output_is_streamed_as_it_comes(gq, start_worker, make_gate):
    gates = [make_gate(), make_gate()]

    @gq.task(name="tell", max_attempts=1)
    def tell(ending: str) -> None:
        current_job().emit("once ")
        gates[0].pass_through()
        current_job().emit("upon")
        gates[1].pass_through()
        if ending == "badly":
            raise RuntimeError("no more")

    start_worker(gq)

    async def story():
        job = await tell.aenqueue(ending="well")
        pieces = []
        async for piece in job.astream(timeout_s=DEADLINE_S):
            pieces.append(str(piece))
            gates[len(pieces) - 1].open()
        assert pieces == ["once ", "upon"]
        assert "".join([piece async for piece in job.astream(timeout_s=DEADLINE_S)]) == "once upon"
        with pytest.raises(JobFailed, match="no more"):
            [piece async for piece in (await tell.aenqueue(ending="badly")).astream(timeout_s=DEADLINE_S)]

    run(story())


def test_a_caller_of_an_absent_service_hears_of_it(make_queue):
    gq = make_queue('[ollama]\n[gpu]\nbudget = "5GB"\n[queues.ai]\ngpu = true\nwhen_unavailable = "reject"\n')

    async def story():
        job = await gq.ollama.agenerate("m", prompt="p", queue="ai")
        with pytest.raises(ServiceUnavailable):
            await job.aresult(timeout_s=DEADLINE_S)

    run(story())


def test_a_task_awaits_a_job_that_it_has_stored(gq, add, start_worker):
    @gq.task(name="sum")
    async def total(numbers: list) -> int:
        jobs = await gq.aenqueue_many([(add, {"a": number, "b": 0}) for number in numbers])
        return sum(await asyncio.gather(*(job.aresult(timeout_s=DEADLINE_S) for job in jobs)))

    start_worker(gq, threads=1)
    assert total.enqueue(numbers=[1, 2, 3, 4]).result(timeout_s=DEADLINE_S) == 10


def test_an_asynchronous_task_can_be_awaited_as_a_function(gq):
    @gq.task(name="look")
    async def look() -> str:
        current_job().progress(0.5)
        return current_job().task

    assert run(look()) == "look"
