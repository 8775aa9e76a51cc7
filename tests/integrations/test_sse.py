"""A job's story as server-sent events: what is told when, coming back, leaving, and what waiting costs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import closing, suppress

import pytest

from gpuqueue import GPUQueue, State, current_job
from gpuqueue.domain.outcomes import Report
from gpuqueue.domain.verdicts import Retry
from gpuqueue.integrations import sse
from gpuqueue.store import open_store
from gpuqueue.store.wakeups import Listener
from gpuqueue.testing.waiting import DEADLINE_S
from tests.integrations.server_events import heard_in, text_of
from tests.store.rows import Rows


def names(events):
    return [event.name for event in events]


def waiters(gq):
    return list((gq.store.runtime_dir / "waiters").iterdir())


@pytest.fixture
def speak(gq, make_gate):
    """A task that says two words with a gate between them; its first attempt is told to fail or not."""
    gates = [make_gate(), make_gate()]

    @gq.task(name="speak", queue="work", max_attempts=2)
    def speak(again: bool = False, fail: str = "") -> dict[str, str]:
        job = current_job()
        job.emit(f"one{job.attempt} ")
        gates[0].pass_through()
        job.emit(f"two{job.attempt}\n…")
        gates[1].pass_through()
        if again and job.attempt == 1:
            raise Retry(after=0, reason="not yet")
        if fail:
            raise RuntimeError(fail)
        return {"said": "two\nlines"}

    speak.gates = gates
    return speak


@pytest.fixture
def open_speak(speak):
    for gate in speak.gates:
        gate.open()
    return speak


def test_a_job_is_told_from_waiting_to_its_result(gq, speak, start_worker):
    job = speak.enqueue()
    events = heard_in(sse.stream(job))
    waiting = next(events)
    assert waiting.name == "state"
    assert waiting.data == {
        "job": job.id,
        "state": "available",
        "attempt": 0,
        "progress": None,
        "progress_note": None,
        "summary": "waiting",
        "reasons": [{"reason": "no_worker", "detail": "no worker serves queue 'work'", "until": None}],
        "position": 1,
        "expected_start": None,
        "expected_start_earliest": None,
        "expected_start_latest": None,
        "expected_finish": None,
        "expected_finish_earliest": None,
        "expected_finish_latest": None,
    }
    start_worker(gq)
    told = []
    for event in events:
        told.append(event)
        if event.name == "piece":
            speak.gates[names(told).count("piece") - 1].open()
    states = [event.data["state"] for event in told if event.name == "state"]
    assert states[-1] == "running"
    assert text_of(told) == "one1 two1\n…"
    assert told[-1] == ("done", {"result": {"said": "two\nlines"}}, "end")


def test_a_real_stream_of_tokens_is_told_as_it_comes(ai, start_worker):
    start_worker(ai.gq)
    job = ai.gq.ollama.generate("gemma4:e4b", prompt="a long story", queue="ai-realtime", options={"num_predict": 600})
    told = list(heard_in(sse.stream(job)))
    assert names(told).count("piece") > 3
    assert text_of(told) == told[-1].data["result"]["text"]
    assert told[-1].data["result"] == job.result(timeout_s=DEADLINE_S)


def test_who_comes_back_hears_only_what_is_new(gq, open_speak, start_worker):
    start_worker(gq)
    job = open_speak.enqueue()
    first = []
    with closing(sse.stream(job)) as chunks:
        for event in heard_in(chunks):
            first.append(event)
            if event.name == "piece":
                break
    rest = list(heard_in(sse.stream(job, after=first[-1].last_id)))
    assert "restart" not in names(rest)
    assert text_of([*first, *rest]) == "one1 two1\n…"
    assert text_of(rest) != "one1 two1\n…" or first[-1].data["text"] == "one1 two1\n…"
    job.result(timeout_s=DEADLINE_S)
    last = [event for event in heard_in(sse.stream(job)) if event.name == "piece"][-1]
    assert names(heard_in(sse.stream(job, after=last.last_id))) == ["done"]


def test_output_that_begins_anew_is_told_to_who_watches_and_to_who_comes_back(gq, speak, start_worker):
    start_worker(gq)
    job = speak.enqueue(again=True)
    told = []
    for event in heard_in(sse.stream(job)):
        told.append(event)
        if event.name == "piece":
            for gate in speak.gates:
                gate.open()
    assert names(told).count("restart") == 1
    assert text_of(told) == "one2 two2\n…"
    first = next(event for event in told if event.name == "piece")
    came_back = list(heard_in(sse.stream(job, after=first.last_id)))
    assert names(came_back) == ["restart", "piece", "done"]
    assert text_of([first, *came_back]) == "one2 two2\n…"
    # A page that is new has nothing to forget, and hears nothing that was given up.
    assert names(heard_in(sse.stream(job))) == ["piece", "done"]


@pytest.mark.parametrize("after", ["", "x", "1", "1.x", "-1.2", "1.2.3", "٣.٣", "1." + "9" * 400, "end.1"])
def test_an_id_that_is_none_counts_as_none(gq, open_speak, start_worker, after):
    start_worker(gq)
    job = open_speak.enqueue()
    job.result(timeout_s=DEADLINE_S)
    assert text_of(heard_in(sse.stream(job, after=after))) == "one1 two1\n…"


def test_who_has_heard_the_end_hears_nothing_more(gq, open_speak, start_worker):
    start_worker(gq)
    job = open_speak.enqueue()
    *_, last = heard_in(sse.stream(job))
    assert sse.heard_the_end(last.last_id)
    assert not sse.heard_the_end(None)
    assert list(sse.stream(job, after=last.last_id)) == []


def test_a_job_that_fails_says_why(gq, open_speak, start_worker):
    start_worker(gq)
    *_, last = heard_in(sse.stream(open_speak.using(max_attempts=1).enqueue(fail="the “printer”\nburns")))
    assert last == ("failed", {"code": "failed", "message": "RuntimeError: the “printer”\nburns"}, "end")


def test_a_cancelled_job_says_so(gq, speak):
    job = speak.enqueue()
    events = heard_in(sse.stream(job))
    assert next(events).name == "state"
    job.cancel()
    assert names(events)[-1] == "failed"
    *_, last = heard_in(sse.stream(job))
    assert last.data == {"code": "cancelled", "message": "the job was cancelled"}


def test_a_job_that_was_removed_meanwhile_says_so(gq, speak):
    job = speak.enqueue()
    speak.enqueue()
    events = heard_in(sse.stream(job))
    assert next(events).name == "state"
    job.cancel()
    gq.store.jobs.prune_all(State.CANCELLED, before_us=gq.now_us() + 1)
    told = list(events)
    assert told[-1].name == "failed"
    assert told[-1].data["code"] == "unknown_job"


def test_who_waits_for_a_rejecting_queue_that_nobody_serves_hears_the_refusal(make_queue):
    gq = make_queue('[ollama]\n[gpu]\nbudget = "5GB"\n[queues.ai]\ngpu = true\nwhen_unavailable = "reject"\n')
    job = gq.ollama.generate("m", prompt="p", queue="ai")
    *_, last = heard_in(sse.stream(job))
    assert last.data == {"code": "unavailable", "message": "AI service temporarily unavailable"}


def test_a_new_position_is_told(gq, speak):
    first, second = speak.enqueue(), speak.enqueue()
    events = heard_in(sse.stream(second))
    assert next(events).data["position"] == 2
    first.cancel()
    assert next(events).data["position"] == 1


def test_progress_is_told_also_when_nothing_follows_it(tmp_path):
    # Claimed by no worker, so that nobody writes anything else.
    rows = Rows(open_store(tmp_path / "gpuqueue.db"))
    job_id = rows.enqueue()
    (lease,) = rows.claim()
    with GPUQueue(tmp_path / "gpuqueue.db", discover_plugins=False) as gq:
        events = heard_in(sse.stream(gq.job(job_id), keep_alive_s=3600, timeout_s=DEADLINE_S))
        assert next(events).data["progress"] is None
        for round in ("first", "second"):
            for step in range(5):
                rows.store.attempts.report([Report(job_id, lease.lease, progress=(step / 4, f"{round} {step}"))])
            assert any(event.data["progress_note"] == f"{round} 4" for event in events)
    rows.store.close()


def test_silence_is_broken_by_comments_and_nothing_is_told_twice(gq, speak):
    events = heard_in(sse.stream(speak.enqueue(), keep_alive_s=0.02))
    assert names(next(events) for _ in range(60)) == ["state"] + [""] * 59


def test_it_ends_without_a_word_when_its_time_is_over(gq, speak):
    job = speak.enqueue()
    assert names(heard_in(sse.stream(job, timeout_s=0.3))) == ["state"]
    assert job.refresh().state == State.AVAILABLE
    assert waiters(gq) == []


def test_nothing_stays_when_the_client_leaves(gq, speak):
    job = speak.enqueue()
    chunks = sse.stream(job)
    next(chunks)
    assert len(waiters(gq)) == 1
    chunks.close()
    assert waiters(gq) == []

    async def leave():
        async def listen():
            async for _ in sse.astream(job):
                heard.set()

        heard = asyncio.Event()
        listening = asyncio.create_task(listen())
        await heard.wait()
        assert len(waiters(gq)) == 1
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening

    asyncio.run(asyncio.wait_for(leave(), DEADLINE_S))
    assert waiters(gq) == []


def test_who_waits_rests_and_looks_only_when_there_is_news(gq, speak, start_worker, monkeypatch):
    counted = Counter()

    def count(owner, name):
        before = getattr(owner, name)

        def call(*arguments):
            counted[name] += 1
            return before(*arguments)

        monkeypatch.setattr(owner, name, call)

    count(sse._Telling, "look")
    count(Listener, "wait")
    start_worker(gq)
    job = speak.enqueue()
    speak.gates[0].wait_reached()
    list(sse.stream(job, timeout_s=1.5))
    for gate in speak.gates:
        gate.open()
    assert counted["look"] < 50, "thousands, when it asks without a rest"
    assert counted["wait"] < 200


def test_many_async_clients_hear_all_and_wait_without_a_thread_each(gq, speak, start_worker):
    clients = 100

    async def story():
        job = await speak.aenqueue()
        began = asyncio.Semaphore(0)

        async def listen():
            told = []
            async for chunk in sse.astream(job):
                told.append(chunk)
                began.release()
            return list(heard_in(told))

        listening = [asyncio.create_task(listen()) for _ in range(clients)]
        for _ in range(clients):
            await began.acquire()
        threads = threading.active_count()
        start_worker(gq)
        for gate in speak.gates:
            gate.open()
        return threads, await asyncio.gather(*listening)

    threads, told = asyncio.run(asyncio.wait_for(story(), DEADLINE_S))
    assert threads < clients / 2
    assert {text_of(events) for events in told} == {"one1 two1\n…"}
    assert {events[-1].name for events in told} == {"done"}
    assert waiters(gq) == []
