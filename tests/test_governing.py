"""The card governed by a running worker: spills, lost cards, memory that others take meanwhile, and limits by the hour."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import time_machine

from gpuqueue import JobFailed, ServiceUnavailable
from gpuqueue.domain.model_health import health
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import OllamaSimulator
from gpuqueue.testing.waiting import DEADLINE_S
from tests.store.rows import job_of

GEMMA = "gemma4:e4b"
ALWAYS = "00:00-24:00"


def reasons(gq, queue):
    return [hold.reason for hold in gq.holds()[queue]]


# --- a model that does not wholly fit ---


@pytest.fixture
def crowded(make_queue, toml_of):
    """A queue beside a card on which another program leaves no room for a model, and that no driver can read."""
    card = SimulatedCard(speed=30)
    with OllamaSimulator(card) as ollama, simulated_nvml([]):

        def make(on_spill: str):
            return make_queue(toml_of(ollama.url).replace('vram = "4.5GB"', f'vram = "4.5GB"\non_spill = "{on_spill}"'))

        card.take(5_000_000_000)
        yield card, make


def ask(gq):
    return gq.ollama.generate(GEMMA, prompt="x", queue="ai-batch", options={"num_predict": 5})


def test_a_spill_that_is_accepted_is_reported_and_the_model_is_known_to_spill(crowded, start_worker, until):
    _, make = crowded
    gq = make("accept")
    start_worker(gq)
    assert ask(gq).result(timeout_s=DEADLINE_S)["spilled_bytes"] > 10**9
    until(lambda: health(GEMMA, gq.queue_settings("ai-batch"), gq.view()).state == "spills", "it is remembered")


def test_a_spill_that_is_not_accepted_ends_the_job_before_a_token_was_written(crowded, start_worker):
    _, make = crowded
    gq = make("fail")
    start_worker(gq)
    job = ask(gq)
    with pytest.raises(JobFailed, match="did not fit on the card and would run on the CPU") as caught:
        job.result(timeout_s=DEADLINE_S)
    assert caught.value.code == "spilled"
    assert list(job_of(gq.store, job.id).arguments["options"]) == ["num_predict"]


def test_a_spill_may_be_waited_out_without_spending_an_attempt(crowded, start_worker, until):
    card, make = crowded
    gq = make("wait")
    start_worker(gq)
    job = ask(gq)
    until(lambda: job.refresh().state == "retryable", "it waits")
    assert (job.attempt, job.error.code) == (0, "spilled")
    card.give(5_000_000_000)
    job.retry()
    assert job.result(timeout_s=DEADLINE_S)["spilled_bytes"] == 0


# --- a card that is lost ---


def test_a_lost_card_holds_its_queues_until_it_is_back(ai, start_worker, until):
    start_worker(ai.gq)
    ai.batch().result(timeout_s=DEADLINE_S)
    ai.card.lost = True
    until(lambda: reasons(ai.gq, "ai-batch") == ["device_lost"], "batch is held")
    waiting = ai.batch()
    assert "no device can be read: gpu0: " in str(waiting.explain())
    with pytest.raises(ServiceUnavailable, match=r"^AI service temporarily unavailable$"):
        ai.realtime().result(timeout_s=DEADLINE_S)
    ai.card.lost = False
    waiting.result(timeout_s=DEADLINE_S)
    assert reasons(ai.gq, "ai-batch") == []
    assert ai.card.report()["overlaps"] == 0


# --- other programs ---


def test_memory_that_another_program_takes_during_a_run_stops_no_worker(ai, start_worker, until):
    start_worker(ai.gq)
    running = ai.batch(tokens=400)
    until(lambda: ai.card.computing_now, "it generates")
    ai.card.take(3_000_000_000)
    running.result(timeout_s=DEADLINE_S)
    embedding = ai.embed()
    embedding.result(timeout_s=DEADLINE_S)
    ai.card.take(2_000_000_000)
    waiting = ai.batch("next")
    until(lambda: "memory_taken" in str(waiting.explain()), "the next waits and says why")
    assert "another program (pid 4000, 5 GB)" in str(waiting.explain())
    ai.card.give(5_000_000_000)
    waiting.result(timeout_s=DEADLINE_S)
    assert len(ai.gq.workers()) == 1
    assert ai.card.report()["spills"] == 0


# --- limits by the hour ---


def test_a_window_lets_fewer_jobs_run_at_once(make_queue, start_worker, make_gate, until):
    gq = make_queue(f'[queues.reports]\nwindows = [{{ at = "{ALWAYS}", concurrency = 1 }}]\n')
    gates = [make_gate(), make_gate()]
    at_once, most, lock = [0], [0], threading.Lock()

    @gq.task(name="report", queue="reports")
    def report(number: int) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        gates[number].pass_through()
        with lock:
            at_once[0] -= 1

    jobs = [report.enqueue(number=number) for number in range(2)]
    start_worker(gq, threads=4)
    gates[0].wait_reached()
    text = str(jobs[1].explain())
    limit = f"1 of 1 running (job {jobs[0].id}); limit set by its window 00:00-24:00 UTC"
    assert f"reports is at its concurrency limit: {limit}" in text
    for gate in gates:
        gate.open()
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    assert most == [1]


def test_a_running_job_makes_room_for_its_queues_pause_and_goes_on_after_it(ai, make_queue, start_worker, until):
    now = ai.gq.now()
    begins, ends = (now + timedelta(minutes=minutes) for minutes in (2, 4))
    pause = f'pause = ["{begins:%H:%M}-{ends:%H:%M}"]\noverrun = "preempt"'
    gq = make_queue(ai.toml.replace("pause = []", pause) + '\n[worker]\nlease = "1h"\n')
    job = gq.ollama.generate(GEMMA, prompt="x", queue="ai-batch", options={"num_predict": 20_000})
    start_worker(gq)
    until(lambda: ai.card.computing_now, "it generates")
    with time_machine.travel(begins + timedelta(seconds=1)):
        until(lambda: job.refresh().state == "available", "it goes back")
        assert (job.attempt, job.record.preemptions, reasons(gq, "ai-batch")) == (0, 1, ["window"])
    with time_machine.travel(ends + timedelta(seconds=1)):
        until(lambda: job.refresh().state == "running", "it goes on")
    job.cancel()
