"""A real worker beside a program that no queue knows of and that holds the card's memory."""

from __future__ import annotations

from gpuqueue import State
from gpuqueue.domain.units import format_size
from gpuqueue.testing.waiting import DEADLINE_S
from tests.executors import isolated_functions as plain_functions
from tests.gpu import isolated_functions as functions

MIN_FREE_BYTES = 64 * 2**20


def test_a_job_does_not_start_while_another_program_holds_the_memory_that_it_needs(
    card, take_memory, how, make_queue, start_worker, until
):
    # The program leaves less than half of what is free now, the job needs three quarters of it.
    free_bytes = card.free_bytes
    taken_bytes, needed_bytes = free_bytes // 2, free_bytes * 3 // 4
    gq = make_queue(
        f'[gpu]\ndevice = "{card.uuid}"\nbudget = "{needed_bytes}B"\nmin_free = "{MIN_FREE_BYTES}B"\n'
        '[queues.train]\ngpu = true\nbackend = "none"\n[queues.mail]\n'
    )
    take = gq.task(name="take", queue="train", isolate=True)(functions.take_and_return)
    mail = gq.task(name="mail", queue="mail", isolate=True)(plain_functions.where)
    program = take_memory(taken_bytes, how)
    start_worker(gq)

    job = take.enqueue(size_bytes=taken_bytes)
    until(lambda: "memory_taken" in str(job.explain()), "the reason")
    for _ in range(2):  # meanwhile the worker would start the job if it meant to, and does other work
        mail.enqueue().result(timeout_s=DEADLINE_S)

    (hold,) = job.explain().reasons
    assert hold.reason == "memory_taken"
    assert f"needs {format_size(needed_bytes + MIN_FREE_BYTES)} including the reserve" in hold.detail
    held_bytes = {process.pid: process.used_bytes for process in card.read().processes or ()}.get(program.pid)
    if held_bytes:
        assert f"(pid {program.pid}, {format_size(held_bytes)})" in hold.detail
    else:  # in a container its number may be unknown, and under some drivers what it holds
        assert "Other programs hold" in hold.detail or "Largest users: " in hold.detail
    assert (job.refresh().state, job.started_at) == (State.AVAILABLE, None)

    program.end()
    assert job.result(timeout_s=DEADLINE_S) == "taken"
