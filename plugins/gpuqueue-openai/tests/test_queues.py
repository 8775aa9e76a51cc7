"""The verbs in queues: the memory that their jobs reserve and release, and what happens without the server."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from gpuqueue_openai import OpenAI
from openai_scene.scripted import DONE, Reply, refused, said, streamed

from gpuqueue import JobFailed, ServiceUnavailable, State, Worker
from gpuqueue.plugins import AttemptFailedDetails, BackendUnavailable, CallerFault, QueueSettings, RunnerCrashed
from gpuqueue.testing import RecordedAttempt, wait_until
from gpuqueue.testing.waiting import DEADLINE_S

ASKED = [{"role": "user", "content": "count"}]
CARD = '[gpu]\nbudget = "5GB"\n[queues.ai]\ngpu = true\n'


@pytest.fixture
def make(make_gpuqueue):
    """`make(url, toml)` makes a queue object whose server is there, and declares `openai.chat` in the queue `ai`."""

    def make(url, toml="[queues.ai]\n", section=""):
        gq = make_gpuqueue(f'{toml}[openai]\nurl = "{url}"\n{section}', plugins={"openai": OpenAI()})
        return gq, gq.verb("openai.chat", required=["messages"], queue="ai")

    return make


@pytest.fixture
def answering(scripted):
    """A server that says "one"."""
    return scripted(streamed(said("one"), DONE))


# --- without a card ---


def test_a_job_runs_on_llama_and_streams_what_it_says(make, llama, run_worker_until_idle):
    gq, chat = make(llama.url)
    job = chat.enqueue(messages=ASKED, max_tokens=3)
    run_worker_until_idle(gq)
    assert job.result(timeout_s=0)["text"] == " one two three"
    assert "".join(job.stream(timeout_s=DEADLINE_S)) == " one two three"


def test_many_jobs_wait_for_the_server_side_by_side_whatever_the_threads(make, scripted):
    server = scripted(Reply(begins=False, then="mute"))
    gq, chat = make(server.url)
    jobs = [chat.enqueue(messages=ASKED) for _ in range(20)]
    with Worker(gq, threads=1):
        wait_until(lambda: len(server.requests) == 20, "all of them are asked at once")
        for job in jobs:
            job.cancel()
        wait_until(lambda: all(job.refresh().state is State.CANCELLED for job in jobs), "all of them end")


# --- on a card ---


@pytest.mark.parametrize(
    ("section", "wanted", "reserved_bytes"),
    [("", None, 0), ('vram = "2GB"', None, 2 * 10**9), ('vram = "2GB"', "1GB", 10**9)],
)
def test_a_job_reserves_what_it_or_the_section_says_while_it_runs_and_gives_it_back(
    make, scripted, simulated_card, section, wanted, reserved_bytes
):
    server = scripted(Reply(begins=False, then="mute"), streamed(said("one"), DONE))
    gq, chat = make(server.url, CARD, section)
    job = chat.using(vram=wanted).enqueue(messages=ASKED)
    with Worker(gq):
        wait_until(lambda: server.requests, "the server is asked")
        (held,) = gq.view().devices["gpu0"].reservations
        assert (held.job_id, held.reserved_bytes, held.model) == (job.id, reserved_bytes, "")
        job.cancel()
        wait_until(lambda: not gq.view().devices["gpu0"].reservations, "the card is free again")
        assert chat.enqueue(messages=ASKED).result(timeout_s=DEADLINE_S)["text"] == "one"
        wait_until(lambda: not gq.view().devices["gpu0"].reservations, "the card is free again")


def test_a_server_that_fills_the_card_with_its_own_model_does_not_stand_in_the_way_of_its_jobs(
    make, answering, simulated_card, run_worker_until_idle
):
    simulated_card.take(7 * 2**30)
    gq, chat = make(answering.url, CARD)
    job = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq)
    assert job.result(timeout_s=0)["text"] == "one"


def test_its_jobs_take_turns_with_ollamas_and_send_away_a_model_that_leaves_them_no_room(
    make, answering, simulated_card, ollama_server, run_worker_until_idle
):
    ollama = f'[ollama]\nurl = "{ollama_server.url}"\nsettle = "10ms"\n[models."gemma4:e4b"]\nvram = "4.5GB"\n'
    gq, chat = make(answering.url, ollama + CARD.replace('"5GB"\n', '"5GB"\nkeep_warm = "1h"\n'), 'vram = "2GB"')
    first = gq.ollama.generate("gemma4:e4b", prompt="x", options={"num_predict": 2}, queue="ai")
    run_worker_until_idle(gq)
    assert [model.model for model in gq.view().devices["gpu0"].residents] == ["gemma4:e4b"]
    second = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq)
    assert (bool(first.result(timeout_s=0)["text"]), second.result(timeout_s=0)["text"]) == (True, "one")
    assert simulated_card.used_bytes < 2**30


def test_a_job_that_fits_no_budget_says_so(make, answering, simulated_card, run_worker_until_idle):
    gq, chat = make(answering.url, CARD, 'vram = "6GB"')
    job = chat.enqueue(messages=ASKED)
    (waits,) = run_worker_until_idle(gq, may_wait=True)[job.id].reasons
    assert "needs 6 GB; gpu0's budget is 5 GB" in waits.detail


def test_a_job_makes_room_for_one_that_comes_first(make, scripted, simulated_card):
    server = scripted(streamed(said("one"), then="mute"), streamed(said("two"), DONE))
    yields = CARD + 'yields_to = ["first"]\nmin_run = "0s"\n[queues.first]\ngpu = true\n'
    gq, chat = make(server.url, yields)
    with Worker(gq):
        long = chat.enqueue(messages=ASKED)
        wait_until(lambda: len(server.requests) == 1, "the long one runs")
        assert chat.using(queue="first").enqueue(messages=ASKED).result(timeout_s=DEADLINE_S)["text"] == "two"
        assert long.result(timeout_s=DEADLINE_S)["text"] == "two"
    assert (long.refresh().attempt, long.record.preemptions) == (1, 1)


# --- without the server ---


def away(scripted):
    server = scripted(streamed(DONE))
    server.go_away()
    return server.url


@pytest.mark.parametrize("when", ["wait", "retry"])
def test_a_job_waits_for_its_server_without_spending_attempts(make, scripted, run_worker_until_idle, when):
    gq, chat = make(away(scripted), f'[queues.ai]\nwhen_unavailable = "{when}"\nretry_every = "7m"\nmax_attempts = 1\n')
    job = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq, may_wait=True)
    job.refresh()
    assert (job.state, job.attempt, job.record.waiting_for) == (State.RETRYABLE, 0, None)
    assert 400 < (job.record.scheduled_at - gq.now()).total_seconds() <= 420
    assert "refused the connection" in job.error.message


def test_a_job_of_a_queue_that_rejects_ends_at_once(make, scripted, run_worker_until_idle):
    gq, chat = make(away(scripted), '[queues.ai]\nwhen_unavailable = "reject"\n')
    job = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq)
    with pytest.raises(ServiceUnavailable, match="AI service temporarily unavailable"):
        job.result(timeout_s=0)


@pytest.mark.parametrize("when", ["wait", "reject"])
def test_several_ollamas_of_its_queue_change_nothing_in_that(make, scripted, ollama_server, run_worker_until_idle, when):
    ollamas = "".join(f'[[ollama]]\nname = "{name}"\nurl = "{ollama_server.url}"\n' for name in ("desk", "attic"))
    gq, chat = make(away(scripted), f'{ollamas}{CARD}when_unavailable = "{when}"\nretry_every = "7m"\n')
    job = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq, may_wait=True)
    job.refresh()
    if when == "reject":
        assert (job.state, job.error.code) == (State.DISCARDED, "unavailable")
    else:
        assert 400 < (job.record.scheduled_at - gq.now()).total_seconds() <= 420


def test_a_server_says_itself_when_it_is_asked_again(make, scripted, run_worker_until_idle):
    server = scripted(refused(429, "slower", Retry_After="90"))
    gq, chat = make(server.url)
    job = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq, may_wait=True)
    job.refresh()
    assert 80 < (job.record.scheduled_at - gq.now()).total_seconds() <= 90
    assert job.attempt == 0


def test_a_job_goes_on_when_its_server_is_back(make, scripted):
    server = scripted(refused(503, "Loading model"), refused(503, "Loading model"), streamed(said("one"), DONE))
    gq, chat = make(server.url, '[queues.ai]\nretry_every = "10ms"\nmax_attempts = 1\n')
    with Worker(gq):
        assert chat.enqueue(messages=ASKED).result(timeout_s=DEADLINE_S)["text"] == "one"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "error", [BackendUnavailable("away", backend="ollama"), CallerFault("no"), RunnerCrashed("cut"), ValueError("x")]
)
def test_all_other_failures_are_the_cores_to_decide(error):
    attempt = RecordedAttempt({})
    details = AttemptFailedDetails(attempt.lease, QueueSettings("ai"), error, attempt.lease.started_at, None)
    assert OpenAI().attempt_failed(details) is None


def test_a_wrong_key_ends_the_job_and_stands_in_nothing_that_is_kept_of_it(make, scripted, run_worker_until_idle, caplog):
    server = scripted(refused(401, "Incorrect API key provided: sk-secret."))
    gq, chat = make(server.url, section='api_key = "sk-secret"\n')
    job = chat.enqueue(messages=ASKED)
    run_worker_until_idle(gq)
    with pytest.raises(JobFailed, match=r"set api_key in \[openai\], or GPUQUEUE_OPENAI_API_KEY"):
        job.result(timeout_s=0)
    assert (job.refresh().error.code, len(server.requests)) == ("caller_fault", 1)
    kept = b"".join(path.read_bytes() for path in gq.store.engine.path.parent.glob("gpuqueue.db*"))
    assert b"Incorrect API key provided" in kept
    assert b"sk-secret" not in kept and "sk-secret" not in caplog.text


# --- without the worker ---


def test_a_worker_that_dies_leaves_the_server_and_its_place_on_the_card(make, scripted):
    server = scripted(Reply(begins=False, then="mute"), streamed(said("one"), DONE))
    gq, chat = make(server.url, CARD, 'vram = "2GB"')
    job = chat.enqueue(messages=ASKED)
    only_this = '["prometheus", "mirror", "thermal"]'
    command = [sys.executable, "-m", "gpuqueue", "--config", str(gq.store.engine.path.with_name("gpuqueue.toml")), "worker"]
    with subprocess.Popen(command, env={**os.environ, "GPUQUEUE_PLUGINS_BLOCK": only_this}) as worker:
        try:
            wait_until(lambda: server.requests, "the server is asked")
        finally:
            worker.kill()
    assert server.left.wait(DEADLINE_S)
    with Worker(gq):
        assert job.result(timeout_s=DEADLINE_S)["text"] == "one"
        wait_until(lambda: not gq.view().devices["gpu0"].reservations, "the card is free again")
