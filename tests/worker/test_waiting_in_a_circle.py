"""A task that waits for a job which needs the task's own end is told so; all others wait as long as they must."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gpuqueue import GPUQueue, JobFailed, WouldDeadlock, current_job
from gpuqueue.testing.waiting import DEADLINE_S
from tests.executors import isolated_functions

CARD = """
[gpu]
budget = "5GB"

[queues.ai]
gpu = true
"""


def ways_to_wait(handle: Any) -> dict[str, Callable[[], Any]]:
    return {
        "result": handle.result,
        "stream": lambda: [*handle.stream(), handle.result()][-1],
        "watch": lambda: [job for job in handle.watch()] and handle.result(),
        "follow_logs": lambda: [*handle.follow_logs(), handle.result()][-1],
    }


def family(gq: GPUQueue, *, queue: str = "work", child_queue: str = "work", how: str = "result", **options: Any) -> Any:
    """A task that enqueues another with its number and waits for it."""

    @gq.task(name="child", queue=child_queue, **options)
    def child(n: int) -> int:
        return n

    @gq.task(name="parent", queue=queue, **options)
    def parent(n: int) -> int:
        handle = child.enqueue(n=n)
        answer: int = ways_to_wait(handle)[how]()
        return answer

    return parent


def ends(jobs: Any) -> list[Any]:
    """The result of each job, or its error's message."""
    found: list[Any] = []
    for job in jobs:
        try:
            found.append(job.result(timeout_s=DEADLINE_S))
        except JobFailed as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("how", ["result", "stream", "watch", "follow_logs"])
def test_as_few_tasks_as_possible_are_told_that_no_thread_is_left(gq, start_worker, how) -> None:
    parent = family(gq, how=how)
    jobs = gq.enqueue_many([(parent, {"n": n}) for n in range(3)])
    start_worker(gq, threads=3)
    first, second, third = ends(jobs)
    assert [first, second] == [0, 1]
    assert f"WouldDeadlock: job {jobs[2].id} waits for job" in third
    assert "no thread is left to run it, all 3 run jobs that wait" in third


def test_a_task_that_waits_in_the_only_thread_is_told_and_may_go_on(gq, start_worker) -> None:
    @gq.task(name="child")
    def child() -> int:
        return 7

    @gq.task(name="parent")
    def parent() -> list[Any]:
        handle = child.enqueue()
        try:
            handle.result()
        except WouldDeadlock as error:
            return [str(error), error.job_id == current_job().id, error.awaited_id == handle.id, handle.id]
        return []

    start_worker(gq, threads=1)
    text, *right, child_id = parent.enqueue().result(timeout_s=DEADLINE_S)
    assert "no thread is left to run it, the only one waits" in text
    assert right == [True, True]
    assert gq.job(child_id).result(timeout_s=DEADLINE_S) == 7


def test_an_isolated_task_that_waits_in_the_only_thread_is_told(gq, start_worker) -> None:
    child = gq.task(name="child")(isolated_functions.where)
    wait_for = gq.task(name="wait", isolate=True, max_attempts=1)(isolated_functions.wait_for)
    awaited = child.enqueue()
    job = wait_for.using(priority=1).enqueue(database=str(gq.database), task="child", job_id=awaited.id)
    start_worker(gq, threads=1)
    assert "no thread is left to run it, the only one waits" in ends([job])[0]
    assert awaited.result(timeout_s=DEADLINE_S)["arguments"] == {}


def test_with_a_free_thread_in_another_worker_all_complete(make_queue, start_worker, gate) -> None:
    gq = make_queue()
    parent = family(gq)
    start_worker(gq, threads=2)
    jobs = gq.enqueue_many([(parent, {"n": n}) for n in range(2)])
    other = make_queue()
    family(other)
    start_worker(other, threads=1)
    assert ends(jobs) == [0, 1]


def test_the_threads_of_all_workers_count(make_queue, start_worker) -> None:
    first, second = make_queue(), make_queue()
    parents = [family(gq) for gq in (first, second)]
    for gq in (first, second):
        start_worker(gq, threads=1)
    jobs = first.enqueue_many([(parents[0], {"n": n}) for n in range(2)])
    results = ends(jobs)
    assert results[0] == 0
    assert "no thread is left to run it, all 2 run jobs that wait" in results[1]


def test_a_thread_that_does_something_else_is_waited_for(gq, start_worker, gate, until) -> None:
    parent = family(gq)

    @gq.task(name="long", queue="work")
    def long() -> None:
        gate.pass_through()

    long.enqueue()
    start_worker(gq, threads=2)
    gate.wait_reached()
    job = parent.enqueue(n=1)
    waiting = until(lambda: [item for item in gq.jobs() if item.task == "child"], "the child is there")[0]
    until(lambda: "all 2 threads are busy" in str(waiting.explain()), "it is explained")
    gate.open()
    assert job.result(timeout_s=DEADLINE_S) == 1


def test_a_job_on_the_event_loop_needs_no_thread(gq, start_worker) -> None:
    @gq.task(name="child")
    async def child() -> int:
        await asyncio.sleep(0)
        return 3

    @gq.task(name="parent")
    def parent() -> int:
        answer: int = child.enqueue().result()
        return answer

    start_worker(gq, threads=1)
    assert parent.enqueue().result(timeout_s=DEADLINE_S) == 3


def test_a_queue_at_its_limit_is_seen(gq, start_worker) -> None:
    gq.queue("narrow", concurrency=1)
    parent = family(gq, queue="narrow", child_queue="narrow")
    start_worker(gq, threads=4)
    (message,) = ends([parent.enqueue(n=0)])
    assert "queue 'narrow' runs at most 1 job at once, and what it runs waits" in message


def test_a_device_that_the_task_holds_itself_is_seen(make_queue, simulated_card, start_worker) -> None:
    gq = make_queue(CARD)
    parent = family(gq, queue="ai", child_queue="ai", vram="1GB")
    start_worker(gq, threads=4)
    (message,) = ends([parent.enqueue(n=0)])
    assert "gpu0 is taken by jobs that wait" in message


def test_jobs_that_wait_for_each_other_or_for_themselves_are_seen(gq, start_worker, make_gate) -> None:
    gates = [make_gate(), make_gate()]

    @gq.task(name="meet")
    def meet(own: int, other: int) -> int:
        gates[own].pass_through()
        gq.job(other).result()
        return own

    @gq.task(name="alone")
    def alone() -> None:
        gq.job(current_job().id).result()

    first = meet.enqueue(own=0, other=2)
    second = meet.enqueue(own=1, other=1)
    assert [first.id, second.id] == [1, 2]
    start_worker(gq, threads=4)
    for gate in gates:
        gate.wait_reached()
        gate.open()
    left, right = ends([first, second])
    assert "WouldDeadlock: job 2 waits for job 1, which cannot end before job 2 does: it waits for job 2" in right
    assert "job 2:" in left, "the first job gets the second one's failure"
    (message,) = ends([alone.enqueue()])
    assert "WouldDeadlock: job 3 waits for job 3" in message
