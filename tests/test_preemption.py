"""A person's job stops a running batch job, which goes back unspent and ends later; and when a batch job is left alone."""

from __future__ import annotations

import threading

import pytest

from gpuqueue import State, current_job
from gpuqueue.domain import estimates
from gpuqueue.simulators.ollama import GEMMA4_E4B, expected_answer
from gpuqueue.store.sqlite.queries import timeline
from gpuqueue.testing.waiting import DEADLINE_S
from tests.history import History

GEMMA = "gemma4:e4b"
AT_ONCE = 'min_run = "0s"\n'


def with_batch(toml: str, settings: str) -> str:
    return toml.replace("[queues.ai-batch]\n", f"[queues.ai-batch]\n{settings}")


@pytest.fixture
def make_gq(ai, make_queue):
    """A queue object of the scenario whose batch queue, and model, have other settings."""

    def make(batch: str = AT_ONCE, model: str = ""):
        toml = with_batch(ai.toml, batch)
        return make_queue(toml.replace(f'[models."{GEMMA}"]\n', f'[models."{GEMMA}"]\n{model}'))

    return make


def batch(gq, prompt="later", tokens=400):
    return gq.ollama.generate(GEMMA, prompt=prompt, queue="ai-batch", options={"num_predict": tokens})


def realtime(gq, prompt="now"):
    return gq.ollama.generate(GEMMA, prompt=prompt, queue="ai-realtime", options={"num_predict": 5})


def attempts(gq, job):
    with gq.store.engine.lent() as connection:
        return [(found["attempt"], found["outcome"]) for found in timeline(connection, job.id)]


def written(job):
    """Wait until the job has written something."""
    return next(iter(job.stream(timeout_s=DEADLINE_S)))


def reserved(gq):
    return [item for device in gq.view().devices.values() for item in device.reservations]


def check_card(ai, loads=1):
    report = ai.card.report()
    assert (report["overlaps"], report["spills"], report["loads"]) == (0, 0, loads)
    assert report["peak_bytes"] <= 5_000_000_000


def test_a_persons_job_starts_in_the_middle_of_a_batch_job_which_goes_back_unspent(ai, make_gq, start_worker):
    gq = make_gq()
    start_worker(gq)
    job = batch(gq)
    written(job)
    person = realtime(gq)
    assert person.result(timeout_s=DEADLINE_S)["text"] == expected_answer(GEMMA4_E4B, "now", 5)
    assert job.refresh().finished_at is None, "the batch job was long, and the person did not wait for it"
    assert job.result(timeout_s=DEADLINE_S)["text"] == expected_answer(GEMMA4_E4B, "later", 400)
    assert attempts(gq, job) == [(1, "preempted")]
    assert (job.refresh().attempt, job.record.preemptions) == (1, 1)
    assert "".join(job.stream(timeout_s=DEADLINE_S)).endswith(expected_answer(GEMMA4_E4B, "later", 400))
    check_card(ai)  # the model stayed loaded all the time


def test_a_batch_job_that_made_room_keeps_its_place_in_the_queue(ai, make_gq, start_worker):
    gq = make_gq()
    start_worker(gq)
    first, second = batch(gq, "first"), batch(gq, "second", tokens=5)
    written(first)
    realtime(gq).result(timeout_s=DEADLINE_S)
    second.result(timeout_s=DEADLINE_S)
    assert first.refresh().finished_at < second.refresh().started_at


def test_drain_lets_a_batch_job_end_first(ai, make_gq, start_worker):
    gq = make_gq('yield_mode = "drain"\n')
    start_worker(gq)
    job = batch(gq, tokens=150)
    written(job)
    person = realtime(gq)
    person.result(timeout_s=DEADLINE_S)
    assert job.refresh().finished_at <= person.refresh().started_at
    assert attempts(gq, job) == []


def test_a_queue_that_does_not_yield_is_not_interrupted(ai, make_queue, start_worker):
    gq = make_queue(ai.toml.replace('yields_to = ["ai-realtime"]\n', ""))
    start_worker(gq)
    job = batch(gq, tokens=150)
    written(job)
    realtime(gq).result(timeout_s=DEADLINE_S)
    assert attempts(gq, job) == []


def test_a_job_that_has_made_room_often_enough_is_left_alone(ai, make_gq, start_worker):
    gq = make_gq(f"{AT_ONCE}max_preemptions = 1\n")
    start_worker(gq)
    job = batch(gq, tokens=200)
    written(job)
    realtime(gq).result(timeout_s=DEADLINE_S)
    lease = job.refresh().record.lease
    for piece in job.stream(timeout_s=DEADLINE_S):
        if piece.attempt_lease > lease:
            break
    person = realtime(gq, "again")
    person.result(timeout_s=DEADLINE_S)
    assert job.refresh().finished_at <= person.refresh().started_at
    assert attempts(gq, job) == [(1, "preempted")]


def test_an_attempt_runs_at_least_a_while_before_it_makes_room(ai, make_gq, start_worker):
    gq = make_gq('min_run = "500ms"\n')
    start_worker(gq)
    job = batch(gq, tokens=1000)
    written(job)
    began = job.refresh().started_at
    person = realtime(gq)
    person.result(timeout_s=DEADLINE_S)
    assert (person.refresh().started_at - began).total_seconds() >= 0.5
    assert attempts(gq, job)[0] == (1, "preempted")


def test_an_attempt_that_is_nearly_done_is_left_alone(ai, make_gq, start_worker, until):
    gq = make_gq(f'{AT_ONCE}nearly_done = "1h"\n')
    start_worker(gq)
    batch(gq, tokens=50).result(timeout_s=DEADLINE_S)
    until(lambda: gq.view().estimates, "how fast the model writes is learned")
    job = batch(gq, tokens=150)
    written(job)
    person = realtime(gq)
    person.result(timeout_s=DEADLINE_S)
    assert job.refresh().finished_at <= person.refresh().started_at


def test_a_job_that_nobody_waits_for_is_never_interrupted(ai, make_gq, start_worker):
    gq = make_gq()
    start_worker(gq)
    job = batch(gq, tokens=150)
    written(job)
    gq.pause("ai-realtime")
    waiting = realtime(gq)
    job.result(timeout_s=DEADLINE_S)
    assert attempts(gq, job) == []
    waiting.cancel()


LONG = 3000  # tokens: as long as it takes to be preempted twice
NEVER_DONE = f'{AT_ONCE}nearly_done = "0s"\n'
ASKED = [{"role": "user", "content": "  A long one  "}]


def as_chat(gq, **more):
    return gq.ollama.chat(GEMMA, messages=ASKED, queue="ai-batch", options={"num_predict": LONG}, **more)


def as_prompt(gq, **more):
    return gq.ollama.generate(GEMMA, prompt=ASKED[0]["content"], queue="ai-batch", options={"num_predict": LONG}, **more)


@pytest.mark.parametrize("ask", [as_chat, as_prompt])
def test_an_answer_goes_on_where_it_ended_so_that_no_token_is_paid_for_twice(ai, make_gq, start_worker, until, ask):
    gq = make_gq(NEVER_DONE)
    start_worker(gq)
    job = ask(gq, think=False)
    for count in (0, 1):
        until(lambda count=count: has_written(job, preempted=count), "its attempt has written")
        realtime(gq, str(count)).result(timeout_s=DEADLINE_S)
    answer = job.result(timeout_s=DEADLINE_S)
    assert attempts(gq, job) == [(1, "preempted"), (1, "preempted")]
    assert answer["output_tokens"] == LONG
    assert 0 < answer["continued_tokens"] < LONG
    assert answer["text"] == expected_answer(GEMMA4_E4B, ASKED, LONG)
    assert "".join(job.stream(timeout_s=DEADLINE_S)) == answer["text"], "its output is one, and was not begun anew"
    assert len({piece.attempt_lease for piece in job.stream(timeout_s=DEADLINE_S)}) == 1
    assert job.refresh().record.output_tokens == LONG


def has_written(job, preempted):
    record = job.refresh().record
    return (record.preemptions, record.state) == (preempted, State.RUNNING) and record.output_tokens > 0


@pytest.mark.parametrize("think", [None, True])
def test_where_the_model_may_have_thought_the_answer_begins_anew(ai, make_gq, start_worker, think):
    gq = make_gq()
    start_worker(gq)
    job = as_chat(gq, think=think)
    written(job)
    realtime(gq).result(timeout_s=DEADLINE_S)
    answer = job.result(timeout_s=DEADLINE_S)
    assert answer["text"] == expected_answer(GEMMA4_E4B, ASKED, LONG)
    assert "continued_tokens" not in answer


def test_a_model_can_be_set_to_begin_anew(ai, make_gq, start_worker):
    gq = make_gq(model='resume = "restart"\n')
    start_worker(gq)
    job = as_chat(gq, think=False)
    written(job)
    realtime(gq).result(timeout_s=DEADLINE_S)
    assert "continued_tokens" not in job.result(timeout_s=DEADLINE_S)


def test_the_tokens_of_a_continued_answer_count_from_its_beginning_while_it_runs(ai, make_gq, start_worker, until):
    gq = make_gq(NEVER_DONE)
    start_worker(gq)
    as_chat(gq, think=False).result(timeout_s=DEADLINE_S)  # by which the queue knows how long such an answer is
    job = as_chat(gq, think=False)
    until(lambda: has_written(job, preempted=0), "its attempt has written")
    realtime(gq).result(timeout_s=DEADLINE_S)
    until(lambda: has_written(job, preempted=1), "its next attempt has written")
    view = gq.view()
    (running,) = (item for device in view.devices.values() for item in device.reservations if item.job_id == job.id)
    rate = estimates.get(view.estimates, estimates.OUTPUT_RATE, estimates.model_key(GEMMA))
    assert estimates.left_s(view.estimates, running, view.now) == pytest.approx((LONG - running.output_tokens) / rate)
    assert running.output_tokens > job.result(timeout_s=DEADLINE_S)["continued_tokens"]


def test_a_function_makes_room_when_it_says_that_it_can(make_queue, start_worker, until):
    gq = make_queue(
        '[gpu]\nbudget = "5GB"\n[queues.people]\ngpu = true\nbackend = "none"\n'
        f'[queues.train]\ngpu = true\nbackend = "none"\nyields_to = ["people"]\n{AT_ONCE}'
    )
    began, rounds = threading.Semaphore(0), []

    def loop() -> str:
        rounds.append(current_job().attempt)
        began.release()
        while len(rounds) == 1:
            current_job().check()
            threading.Event().wait(0.01)
        return "trained"

    train = gq.task(name="train", queue="train", preemptible=True)(loop)

    @gq.task(name="ask", queue="people")
    def ask() -> str:
        return "answered"

    start_worker(gq)
    job = train.enqueue()
    assert began.acquire(timeout=DEADLINE_S)
    assert ask.enqueue().result(timeout_s=DEADLINE_S) == "answered"
    assert job.result(timeout_s=DEADLINE_S) == "trained"
    assert rounds == [1, 1], "its attempt was not spent"
    assert attempts(gq, job) == [(1, "preempted")]


def test_another_workers_attempt_makes_room_too(ai, make_gq, make_queue, start_worker, until):
    gq = make_gq()
    history = History(gq)
    batch_worker = start_worker(gq, queues=["ai-batch"])
    start_worker(make_gq(), queues=["ai-realtime"])
    job = batch(gq)
    written(job)
    realtime(gq).result(timeout_s=DEADLINE_S)
    job.result(timeout_s=DEADLINE_S)
    assert attempts(gq, job) == [(1, "preempted")]
    assert batch_worker.id
    check_card(ai)
    until(lambda: not reserved(gq), "the card is given back")
    history.check(completed=[job.id for job in gq.jobs()])
