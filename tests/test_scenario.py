"""The scenario that must always work: one card, one Ollama, a realtime and a batch queue, and two that know nothing of it."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest
import time_machine

from gpuqueue import ConfigurationError, JobCancelled, JobFailed, ServiceUnavailable, hookimpl
from gpuqueue.domain.verdicts import Retry
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.simulators.ollama import NOMIC_EMBED_TEXT, expected_answer, expected_embedding
from gpuqueue.testing.waiting import DEADLINE_S

GEMMA = "gemma4:e4b"
REFUSED = "^AI service temporarily unavailable$"


class RetryAtOnce:
    @hookimpl
    def attempt_failed(self, details):
        if type(details.error).__name__ in ("BackendUnavailable", "ConnectionRefused"):
            return None
        return Retry(0) if details.lease.attempt < details.lease.max_attempts else None


def reasons(gq, queue):
    return [hold.reason for hold in gq.holds()[queue]]


def wait_generating(ai, until):
    until(lambda: ai.card.computing_now, "something computes")


def check_card(ai):
    report = ai.card.report()
    assert report["overlaps"] == 0
    assert report["peak_bytes"] <= 5_000_000_000
    assert report["spills"] == 0
    return report


# --- who runs when ---


def test_jobs_of_the_loaded_model_go_first_so_that_each_model_is_loaded_once(ai, start_worker):
    jobs = [job for _ in range(4) for job in (ai.batch(), ai.embed())]
    start_worker(ai.gq)
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    assert check_card(ai)["loads"] == 2


def test_realtime_goes_before_batch_and_never_beside_it(ai, start_worker, until):
    ai.gq = ai.make_queue(ai.toml.replace("yields_to", 'yield_mode = "drain"\nyields_to'))
    batch = [ai.batch(f"revision {number}", tokens=100) for number in range(3)]
    start_worker(ai.gq)
    until(lambda: batch[0].refresh().state == "running")
    realtime = ai.realtime()
    assert "Answer to" in realtime.result(timeout_s=DEADLINE_S)["text"]
    for job in batch:
        job.result(timeout_s=DEADLINE_S)

    assert batch[0].started_at < realtime.started_at < batch[1].started_at < batch[2].started_at
    for earlier, later in zip([batch[0], realtime, batch[1]], [realtime, batch[1], batch[2]], strict=True):
        assert earlier.finished_at <= later.started_at
    check_card(ai)


def test_batch_that_yields_says_to_what(ai, start_worker, until):
    ai.ollama.faults.add("stall", after_tokens=1)
    start_worker(ai.gq)
    realtime = ai.realtime()
    next(iter(realtime.stream(timeout_s=DEADLINE_S)))
    waiting = ai.batch()
    text = str(waiting.explain())
    assert "yielding: ai-realtime comes first (1 running, 0 waiting)" in text
    assert f"device_busy: gpu0 is running job {realtime.id} (ai-realtime)" in text
    realtime.cancel()
    waiting.result(timeout_s=DEADLINE_S)


def test_a_model_stays_for_the_next_job_that_needs_it_and_is_gone_after_the_last(ai, start_worker, until):
    jobs = [ai.batch(str(number)) for number in range(5)]
    start_worker(ai.gq)
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    assert check_card(ai)["loads"] == 1
    until(lambda: ai.card.used_bytes == ai.card.reserved_bytes, "all memory is back")
    until(lambda: ai.gq.view().devices["gpu0"].reservations == ())


def test_an_embedding_evicts_the_model_and_waits_its_turn(ai, start_worker, until):
    ai.gq = ai.make_queue(ai.toml.replace("max_models", 'affinity = "0s"\nmax_models'))  # else both of the loaded model go first
    first, embedding, last = ai.batch(), ai.embed(), ai.batch()
    start_worker(ai.gq)
    assert embedding.result(timeout_s=DEADLINE_S)["embeddings"] == [expected_embedding(NOMIC_EMBED_TEXT, "text")]
    first.result(timeout_s=DEADLINE_S)
    last.result(timeout_s=DEADLINE_S)
    assert first.finished_at <= embedding.started_at < embedding.finished_at <= last.started_at
    report = check_card(ai)
    assert report["loads"] == 3
    assert report["peak_bytes"] <= 5_000_000_000, "it loads beside memory that comes back, within the budget"


def test_queues_without_a_gpu_run_beside_it_all(ai, start_worker, until):
    @ai.gq.task(name="remind", queue="rfa-reminders")
    def remind() -> str:
        return "sent"

    ai.ollama.faults.add("stall", after_tokens=1)
    start_worker(ai.gq)
    stalled = ai.realtime()
    next(iter(stalled.stream(timeout_s=DEADLINE_S)))
    assert remind.enqueue().result(timeout_s=DEADLINE_S) == "sent"
    ai.ollama.go_away()
    assert remind.enqueue().result(timeout_s=DEADLINE_S) == "sent"
    ai.ollama.come_back()


def test_the_memory_is_seen_to_be_back_before_the_next_model_loads(ai, start_worker):
    ai.gq = ai.make_queue(ai.toml.replace('budget = "5GB"', 'budget = "4.9GB"'))  # one has no room beside the other
    ai.ollama.faults.add("slow_unload", model=GEMMA)
    first, embedding = ai.batch(), ai.embed()
    start_worker(ai.gq)
    embedding.result(timeout_s=DEADLINE_S)
    assert embedding.started_at - first.refresh().finished_at > timedelta(seconds=0.2)  # 8 simulated seconds, minus the call
    check_card(ai)


# --- failures on the card ---


@pytest.mark.parametrize("fault", ["out_of_memory", "crash_before_first_token", "crash_mid_stream", "silent_truncation"])
def test_a_failure_on_the_card_is_tried_again(ai, start_worker, fault):
    gq = ai.make_queue(ai.toml, plugins=[RetryAtOnce()])
    ai.ollama.faults.add(fault)
    start_worker(gq)
    job = gq.ollama.generate(GEMMA, prompt="x", queue="ai-batch", options={"num_predict": 8}, job={"max_attempts": 2})
    assert job.result(timeout_s=DEADLINE_S)["output_tokens"] == 8
    assert job.attempt == 2
    assert job.error is None
    check_card(ai)


@pytest.mark.parametrize(("fault", "code"), [("out_of_memory", "out_of_memory"), ("crash_mid_stream", "runner_crashed")])
def test_a_failure_on_the_card_is_named_by_its_kind(ai, start_worker, fault, code):
    ai.ollama.faults.add(fault)
    start_worker(ai.gq)
    with pytest.raises(JobFailed) as caught:
        ai.batch(job={"max_attempts": 1}).result(timeout_s=DEADLINE_S)
    assert caught.value.code == code
    ai.batch().result(timeout_s=DEADLINE_S)


def test_an_ollama_that_is_busy_postpones_a_batch_job_without_spending_an_attempt(ai, start_worker):
    ai.ollama.faults.add("busy")
    start_worker(ai.gq)
    job = ai.batch(job={"max_attempts": 1})
    job.result(timeout_s=DEADLINE_S)
    assert job.attempt == 1


def test_an_unknown_model_is_the_callers_fault(ai, start_worker):
    start_worker(ai.gq)
    with pytest.raises(JobFailed) as caught:
        ai.gq.ollama.generate("no-such-model", prompt="x", queue="ai-batch").result(timeout_s=DEADLINE_S)
    assert caught.value.code == "caller_fault"
    ai.batch().result(timeout_s=DEADLINE_S)


def test_cancelling_while_it_generates_frees_the_card(ai, start_worker, until):
    ai.ollama.faults.add("stall", after_tokens=2)
    start_worker(ai.gq)
    job = ai.batch()
    next(iter(job.stream(timeout_s=DEADLINE_S)))
    job.cancel()
    with pytest.raises(JobCancelled):
        job.result(timeout_s=DEADLINE_S)
    until(lambda: ai.card.used_bytes == ai.card.reserved_bytes, "all memory is back")
    until(lambda: ai.gq.job(job.id).record.device is None)
    ai.batch().result(timeout_s=DEADLINE_S)
    check_card(ai)


def test_a_job_past_its_timeout_frees_the_card(ai, start_worker, until):
    ai.ollama.faults.add("stall", after_tokens=2)
    start_worker(ai.gq)
    with pytest.raises(JobFailed, match="longer than its timeout") as caught:
        ai.batch(job={"timeout": "400ms", "max_attempts": 1}).result(timeout_s=DEADLINE_S)
    assert caught.value.code == "timed_out"
    until(lambda: ai.card.used_bytes == ai.card.reserved_bytes, "all memory is back")


def test_a_job_waits_for_memory_that_another_program_holds_and_names_it(ai, start_worker, until):
    ai.card.take(6_000_000_000)
    start_worker(ai.gq)
    job = ai.batch()
    until(lambda: "memory_taken" in str(job.explain()), "the reason")
    assert "another program (pid 4000, 6 GB)" in str(job.explain())
    assert "needs 4.77 GB including the reserve; gpu0 has 2.39 GB free" in str(job.explain())
    assert check_card(ai)["loads"] == 0
    ai.card.give(6_000_000_000)
    assert job.result(timeout_s=DEADLINE_S).get("spilled_bytes", 0) == 0
    check_card(ai)


# --- the GPU away ---


def test_the_callers_of_realtime_hear_at_once_that_the_service_is_away(ai, start_worker):
    ai.ollama.go_away()
    start_worker(ai.gq)
    began_s = time.monotonic()
    with pytest.raises(ServiceUnavailable, match=REFUSED):
        ai.realtime().result(timeout_s=DEADLINE_S)
    assert time.monotonic() - began_s < 10
    with pytest.raises(ServiceUnavailable, match=REFUSED):
        ai.realtime().result(timeout_s=DEADLINE_S)


def test_a_job_is_refused_as_it_is_stored_when_the_service_is_known_to_be_away(ai, start_worker, until):
    ai.ollama.go_away()
    worker = start_worker(ai.gq)
    until(lambda: reasons(ai.gq, "ai-realtime") == ["unavailable"])
    worker.stop()
    assert ai.realtime().refresh().error.code == "unavailable", "no worker had to look at it"
    with pytest.raises(ServiceUnavailable, match=REFUSED):
        asyncio.run(ai.gq.ollama.agenerate(GEMMA, prompt="x", queue="ai-realtime")).result(timeout_s=DEADLINE_S)
    assert ai.batch().refresh().state == "available", "batch waits for it"
    assert ai.realtime(job={"delay": "5m"}).refresh().state == "scheduled", "by then it may be back"
    with time_machine.travel(ai.gq.now() + timedelta(minutes=10)):
        assert ai.realtime().refresh().state == "available", "nobody has asked for long; it may be back"
        assert reasons(ai.gq, "ai-realtime") == []


def test_a_job_whose_time_has_not_come_is_not_refused_because_the_service_is_away_now(ai, start_worker, until):
    ai.ollama.go_away()
    worker = start_worker(ai.gq)
    until(lambda: reasons(ai.gq, "ai-realtime") == ["unavailable"])
    worker.stop()
    later = ai.gq.ollama.generate(GEMMA, prompt="x", queue="ai-realtime", job={"delay": "10m"})
    assert later.refresh().state == "scheduled"


def test_a_thousand_waiting_realtime_jobs_are_refused_together(ai, start_worker, until):
    ai.ollama.go_away()
    many = ("ollama.generate", {"model": GEMMA, "prompt": "x"})
    ai.gq.enqueue_many([{"task": many[0], "arguments": many[1], "queue": "ai-realtime"}] * 1200)
    start_worker(ai.gq)
    until(lambda: ai.gq.counts()["ai-realtime"] == {"discarded": 1200})


def test_a_job_that_comes_while_the_breaker_is_open_is_refused_although_every_thread_is_busy(ai, start_worker, gate, until):
    @ai.gq.task(name="hold", queue="rfa-reminders")
    def hold() -> None:
        gate.pass_through()

    ai.ollama.go_away()
    start_worker(ai.gq, threads=1)
    hold.enqueue()
    gate.wait_reached()
    until(lambda: reasons(ai.gq, "ai-realtime") == ["unavailable"])
    with pytest.raises(ServiceUnavailable, match=REFUSED):
        ai.realtime().result(timeout_s=DEADLINE_S)


def test_batch_waits_unspent_while_the_service_is_away_and_goes_on_when_it_is_back(ai, start_worker, until):
    start_worker(ai.gq)
    ai.batch().result(timeout_s=DEADLINE_S)
    ai.ollama.faults.add("stall", after_tokens=1)
    running = ai.batch("running", job={"max_attempts": 1})
    next(iter(running.stream(timeout_s=DEADLINE_S)))
    ai.ollama.faults.clear()
    ai.ollama.go_away()
    waiting = ai.batch("waiting", job={"max_attempts": 1})
    until(lambda: reasons(ai.gq, "ai-batch") == ["unavailable"])
    assert "unavailable: ollama: " in str(waiting.explain())

    ai.ollama.come_back()  # a retry by itself would come after five minutes
    running.result(timeout_s=DEADLINE_S)
    waiting.result(timeout_s=DEADLINE_S)
    assert (running.attempt, waiting.attempt) == (1, 1)
    assert reasons(ai.gq, "ai-batch") == []
    check_card(ai)


def test_a_job_whose_model_is_not_there_runs_on_the_next_of_its_fallback(ai, start_worker, until):
    start_worker(ai.gq)
    until(lambda: ai.gq.view().backends["ollama"].models, "the models are listed")
    options = {"num_predict": 5, "num_ctx": 99}
    asked = {"queue": "ai-batch", "options": options, "job": {"fallback": ["gone", GEMMA]}}
    answer = ai.gq.ollama.generate("absent", prompt="x", **asked).result(timeout_s=DEADLINE_S)
    assert (answer["model"], answer["text"]) == (GEMMA, expected_answer(GEMMA, "x", num_predict=5))
    with pytest.raises(JobFailed, match="ollama pull absent"):
        ai.gq.ollama.generate("absent", prompt="x", queue="ai-batch").result(timeout_s=DEADLINE_S)


# --- nothing leaves batch held ---


def held_by_nothing(ai, until):
    until(lambda: reasons(ai.gq, "ai-batch") == [], "batch is not held")
    ai.batch().result(timeout_s=DEADLINE_S)


def test_a_realtime_job_that_fails_leaves_batch_free(ai, start_worker, until):
    start_worker(ai.gq)
    ai.ollama.faults.add("crash_mid_stream")
    with pytest.raises(JobFailed):
        ai.realtime(job={"max_attempts": 1}).result(timeout_s=DEADLINE_S)
    held_by_nothing(ai, until)


def test_a_realtime_job_that_waits_for_its_next_attempt_leaves_batch_free(ai, start_worker, until):
    start_worker(ai.gq)
    ai.ollama.faults.add("crash_mid_stream")
    job = ai.realtime(job={"max_attempts": 2})
    until(lambda: job.refresh().state == "retryable")
    held_by_nothing(ai, until)
    job.cancel()


def test_a_realtime_job_that_is_cancelled_leaves_batch_free(ai, start_worker, until):
    start_worker(ai.gq)
    ai.ollama.faults.add("stall", after_tokens=1)
    job = ai.realtime()
    next(iter(job.stream(timeout_s=DEADLINE_S)))
    job.cancel()
    held_by_nothing(ai, until)


def test_realtime_jobs_that_expire_or_are_scheduled_leave_batch_free(ai, start_worker, until):
    ai.gq.pause("ai-realtime")
    start_worker(ai.gq)
    expired = ai.realtime(job={"expires_in": "50ms"})
    until(lambda: expired.refresh().state == "discarded")
    ai.gq.resume("ai-realtime")
    ai.realtime(job={"delay": "1h"})
    held_by_nothing(ai, until)


def test_a_paused_realtime_queue_with_a_backlog_leaves_batch_free(ai, start_worker, until):
    ai.gq.pause("ai-realtime")
    backlog = [ai.realtime() for _ in range(3)]
    start_worker(ai.gq)
    held_by_nothing(ai, until)
    assert {job.refresh().state for job in backlog} == {"available"}


def test_realtime_jobs_that_never_fit_leave_batch_free(ai, start_worker, until):
    toml = ai.toml + '\n[models.huge]\nvram = "5GB"\n'
    gq = ai.make_queue(toml, plugins=[TooLarge()])
    start_worker(gq)
    huge = gq.ollama.generate("huge", prompt="x", queue="ai-realtime")
    until(lambda: "never_fits" in str(huge.explain()) and huge.refresh().record.demand_bytes)
    assert "needs 6 GB; gpu0's budget is 5 GB. Raise [gpu] budget or use a smaller model" in str(huge.explain())
    ai.gq = gq
    held_by_nothing(ai, until)
    ai.realtime().result(timeout_s=DEADLINE_S)  # nor do they stand before what fits


class TooLarge:
    @hookimpl
    def job_demand(self, details):
        from gpuqueue.domain.answers import Demand

        return Demand(6_000_000_000, "huge") if details.job.arguments["model"] == "huge" else None


def test_a_realtime_queue_that_no_worker_serves_leaves_batch_free(ai, start_worker, until):
    start_worker(ai.gq, queues=["ai-batch"])
    ai.realtime()
    held_by_nothing(ai, until)


def test_a_worker_of_batch_alone_starts_scheduled_jobs_too(ai, start_worker):
    start_worker(ai.gq, queues=["ai-batch"])
    ai.batch(job={"delay": "200ms"}).result(timeout_s=DEADLINE_S)


def test_a_realtime_worker_that_dies_leaves_batch_free(ai, start_worker, until):
    start_worker(ai.gq)
    with ai.gq.store.engine.lent() as connection:  # a worker that left nothing but a row and a running job
        job = ai.realtime(job={"delay": "1h"})
        connection.execute(
            "INSERT INTO workers (id, host, pid, queues, started_at, expires_at, digest, runtime_dir) "
            "VALUES ('dead', 'elsewhere', 1, NULL, 1, ?, 'x', '/nowhere')",
            (ai.gq.now_us() + 300_000,),
        )
        connection.execute(
            "UPDATE jobs SET state = 'running', worker_id = 'dead', lease = 1, attempt = 1, device = 'gpu0', "
            "reserved_bytes = 4500000000, demand_model = ?, started_at = 1 WHERE id = ?",
            (GEMMA, job.id),
        )
    assert reasons(ai.gq, "ai-batch") == ["yielding"]
    until(lambda: job.refresh().error is not None and job.error.code == "crashed")
    job.cancel()
    held_by_nothing(ai, until)


# --- windows ---


def test_a_window_holds_batch_and_leaves_realtime_alone(ai, start_worker, toml_of):
    around_now = '["00:00-12:00", "12:00-00:00"]'
    gq = ai.make_queue(toml_of(ai.ollama.url, pause=around_now))
    ai.gq = gq
    start_worker(gq)
    batch = ai.batch()
    ai.realtime().result(timeout_s=DEADLINE_S)
    assert batch.refresh().state == "available"
    assert "window: paused" in str(batch.explain())


# --- the card ---


def test_a_budget_that_the_card_does_not_have_is_refused_at_the_start(ai, start_worker):
    gq = ai.make_queue(ai.toml.replace('margin = "3GB"', 'margin = "4GB"'))
    with pytest.raises(ConfigurationError, match=r"budget 5 GB \+ margin 4 GB exceeds the 8.59 GB of gpu0; lower"):
        start_worker(gq)
    assert gq.workers() == []


def test_two_workers_share_the_card(ai, start_worker):
    other = ai.make_queue(ai.toml)
    start_worker(ai.gq)
    start_worker(other)
    jobs = [ai.batch(), ai.realtime(), ai.embed(), ai.realtime(), ai.batch(), ai.embed("ai-realtime")]
    for job in jobs:
        job.result(timeout_s=DEADLINE_S)
    check_card(ai)


def test_a_worker_that_stops_gives_the_memory_back_first(ai, start_worker, until):
    worker = start_worker(ai.gq)
    ai.ollama.faults.add("stall", after_tokens=1)
    job = ai.batch()
    next(iter(job.stream(timeout_s=DEADLINE_S)))
    worker.stop(grace_s=1)
    assert (job.refresh().state, job.attempt, job.record.device) == ("available", 0, None)
    assert ai.card.used_bytes == ai.card.reserved_bytes


def test_without_a_driver_the_memory_is_said_to_be_unverified(make_queue, toml_of, start_worker, caplog):
    from gpuqueue.simulators.card import SimulatedCard
    from gpuqueue.simulators.ollama import OllamaSimulator

    card = SimulatedCard(speed=30)
    with OllamaSimulator(card) as ollama, simulated_nvml([]), caplog.at_level("DEBUG", "gpuqueue.worker"):
        gq = make_queue(toml_of(ollama.url))
        start_worker(gq)
        job = gq.ollama.generate(GEMMA, prompt="x", queue="ai-batch", options={"num_predict": 3})
        job.result(timeout_s=DEADLINE_S)
        following = gq.ollama.embed("nomic-embed-text", input="x", queue="ai-batch")
        following.result(timeout_s=DEADLINE_S)
    assert any("its memory is unverified: no driver can read gpu0" in record.getMessage() for record in caplog.records)
    assert card.report()["overlaps"] == 0


# --- functions on a GPU, without an Ollama ---


def test_functions_on_the_gpu_run_one_at_a_time(make_queue, start_worker, make_gate, until):
    gq = make_queue(
        '[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\nbackend = "none"\n[queues.render]\ngpu = true\nbackend = "none"\n'
    )
    gates = [make_gate() for _ in range(3)]

    @gq.task(name="work", queue="train")
    def work(number: int) -> None:
        gates[number].pass_through()

    start_worker(gq)
    jobs = [work.enqueue(number=0), work.using(queue="render").enqueue(number=1), work.enqueue(number=2)]
    for number, gate in enumerate(gates):
        gate.wait_reached()
        assert [job.refresh().state for job in jobs[number:]] == ["running", *["available"] * (2 - number)]
        if number < 2:
            assert f"device_busy: gpu0 is running job {jobs[number].id}" in str(jobs[-1].explain())
        gate.open()
        jobs[number].result(timeout_s=DEADLINE_S)


def test_a_gpu_function_that_does_not_stop_keeps_the_card_until_its_thread_ends(make_queue, start_worker, gate, until):
    gq = make_queue('[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\nbackend = "none"\n')

    @gq.task(name="stuck", queue="train", timeout="100ms")
    def stuck() -> None:
        gate.pass_through()

    @gq.task(name="work", queue="train")
    def work() -> int:
        return 7

    start_worker(gq)
    job, following = stuck.enqueue(), work.enqueue()
    with pytest.raises(JobFailed, match="longer than its timeout"):
        job.result(timeout_s=DEADLINE_S)
    assert following.refresh().state == "available"
    assert f"clean_up: waiting for job {job.id}'s memory on gpu0 to be released" in str(following.explain())
    gate.open()
    assert following.result(timeout_s=DEADLINE_S) == 7
