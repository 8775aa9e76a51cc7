"""When a job is expected to start and to finish, and that nothing is said where nothing was learned."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuqueue.decisions.expectations import expect
from gpuqueue.domain import estimates
from gpuqueue.domain.answers import Hold, Preemption
from gpuqueue.domain.device import Resident
from gpuqueue.domain.estimates import model_key, work_key
from gpuqueue.domain.explanation import Expectation, QueueContext, RunningJob, Work
from gpuqueue.domain.job import State
from gpuqueue.domain.settings import ModelSettings
from gpuqueue.domain.view import DeviceView, Estimate, QueueView
from gpuqueue.testing.views import GPU0, MAIL, NOW, job, reservation, view

MODEL = "gemma4:e4b"
GENERATE = "ollama.generate"
LEARNED = {
    (estimates.RUN, work_key("ai-batch", GENERATE, MODEL)): Estimate(20.0, 5),
    (estimates.RUN, work_key("ai-realtime", GENERATE, MODEL)): Estimate(5.0, 5),
    (estimates.RUN, work_key("mail", "send", "")): Estimate(3.0, 5),
    (estimates.LOAD, model_key(MODEL)): Estimate(4.0, 5),
    (estimates.OUTPUT_RATE, model_key(MODEL)): Estimate(50.0, 5),
    (estimates.OUTPUT, work_key("ai-batch", GENERATE, MODEL)): Estimate(400.0, 5),
}
WAITING = job(model=MODEL, demand_bytes=4_500_000_000)
LOADED = DeviceView(GPU0, residents=(Resident(MODEL, 4 * 10**9, 4 * 10**9),))


def learned(*queues, devices=(LOADED,), known=LEARNED):
    return replace(view(*queues, devices=devices), estimates=known)


def seconds(expected):
    """Start and finish, in seconds from now."""
    return tuple(None if at is None else (at - NOW).total_seconds() for at in (expected.start_at, expected.finish_at))


def ahead(*counts, queue="ai-batch", task=GENERATE, model=MODEL):
    return QueueContext(tuple(Work(queue, task, model, count) for count in counts))


def test_a_job_that_nothing_holds_starts_now_and_takes_what_its_like_took():
    expected = expect(WAITING, learned(), (), {}, QueueContext())
    assert (expected.position, seconds(expected)) == (1, (0.0, 20.0))


def test_a_model_that_is_not_loaded_is_loaded_first():
    expected = expect(WAITING, learned(devices=(DeviceView(GPU0),)), (), {}, QueueContext())
    assert seconds(expected) == (0.0, 24.0)


def test_the_jobs_before_it_and_the_running_one_come_first():
    running = replace(reservation(), task=GENERATE, started_at=NOW - timedelta(seconds=6), output_tokens=300, preemptible=True)
    busy = learned(devices=(replace(LOADED, reservations=(running,)),))
    reasons = (Hold("device_busy", "", ends_with_jobs=True), Hold("behind", "", ends_with_jobs=True))
    expected = expect(WAITING, busy, reasons, {}, ahead(3))
    assert (expected.position, seconds(expected)) == (4, (62.0, 82.0))
    persons = replace(WAITING, queue="ai-realtime")
    stopped = Preemption(running.job_id, running.lease, persons.id)
    assert seconds(expect(persons, busy, reasons, {}, QueueContext(), lambda: [stopped])) == (0.0, 5.0), "it is stopped for it"
    later = stopped._replace(not_before=NOW + timedelta(seconds=1))
    assert seconds(expect(persons, busy, reasons, {}, QueueContext(), lambda: [later])) == (1.0, 6.0)
    assert seconds(expect(persons, busy, reasons, {}, QueueContext())) == (2.0, 7.0), "it may go on to its end"


def test_the_jobs_of_a_queue_that_comes_first_count_unless_they_cannot_start():
    first = ahead(2, queue="ai-realtime")
    assert seconds(expect(WAITING, learned(), (), {}, first)) == (10.0, 30.0)
    paused = {"ai-realtime": [Hold("paused", "")]}
    assert seconds(expect(WAITING, learned(), (), paused, first)) == (0.0, 20.0)
    yielding = {"ai-realtime": [Hold("yielding", "", ends_with_jobs=True)]}
    assert seconds(expect(WAITING, learned(), (), yielding, first)) == (10.0, 30.0)
    assert expect(WAITING, learned(), (), {}, first).position == 1


def test_it_starts_no_sooner_than_what_holds_it_ends():
    reasons = (Hold("window", "", NOW + timedelta(hours=2)), Hold("scheduled", "", NOW + timedelta(hours=1)))
    assert seconds(expect(WAITING, learned(), reasons, {}, ahead(1))) == (7200.0, 7220.0)


@pytest.mark.parametrize("reason", [Hold("paused", ""), Hold("no_worker", ""), Hold("unavailable", ""), Hold("mine", "")])
def test_nobody_knows_when_a_job_starts_that_is_held_without_an_end(reason):
    expected = expect(WAITING, learned(), (reason,), {}, ahead(1))
    assert (expected.position, seconds(expected)) == (2, (None, None))


def test_nothing_is_said_where_nothing_was_learned():
    assert seconds(expect(WAITING, learned(known={}), (), {}, QueueContext())) == (0.0, None)
    assert seconds(expect(WAITING, learned(known={}), (), {}, ahead(1))) == (None, None)
    assert seconds(expect(WAITING, learned(), (), {}, ahead(1, task="new"))) == (None, None)


def test_several_slots_work_the_waiting_jobs_off_together():
    two = replace(LOADED, settings=replace(GPU0, slots=2))
    assert seconds(expect(WAITING, learned(devices=(two,)), (), {}, ahead(4))) == (40.0, 60.0)


def test_a_queue_without_a_device_is_worked_off_as_many_at_once_as_it_may():
    mail = QueueView(replace(MAIL, concurrency=2), running_count=2)
    waiting = job(queue="mail", task="send", arguments={})
    running = tuple(RunningJob(id, "send", NOW - timedelta(seconds=1)) for id in (7, 8))
    context = QueueContext((Work("mail", "send", "", 4),), running)
    assert seconds(expect(waiting, learned(mail), (Hold("concurrency", "", ends_with_jobs=True),), {}, context)) == (8.0, 11.0)


def test_a_running_job_is_expected_to_finish_and_an_ended_one_nothing():
    running = replace(reservation(1), task=GENERATE, started_at=NOW, output_tokens=300)
    at_work = learned(devices=(replace(LOADED, reservations=(running,)),))
    expected = expect(job(1, state=State.RUNNING, started_at=NOW, model=MODEL), at_work, (), {}, QueueContext())
    assert (expected.position, seconds(expected)) == (None, (0.0, 2.0))
    sending = job(2, queue="mail", task="send", state=State.RUNNING, started_at=NOW - timedelta(seconds=1))
    assert seconds(expect(sending, learned(), (), {}, QueueContext())) == (-1.0, 2.0)
    assert expect(job(state=State.COMPLETED, finished_at=NOW), learned(), (), {}, QueueContext()) is None


def test_a_model_named_in_the_arguments_counts_only_where_models_are_loaded():
    named = job(queue="mail", task="send", arguments={"model": MODEL})
    assert seconds(expect(named, learned(QueueView(MAIL)), (), {}, QueueContext())) == (0.0, 3.0)


def test_it_is_worded_for_people():
    soon = Expectation(3, NOW + timedelta(seconds=90.4), NOW + timedelta(seconds=125))
    assert soon.worded(now=NOW).startswith("expected: number 3 in its queue, starts at ")
    assert "(1m 30s from now), finishes at " in soon.worded(now=NOW)
    assert Expectation(1, NOW, None).worded(now=NOW) == ""


def test_a_job_without_a_free_thread_starts_when_those_in_the_threads_are_done() -> None:
    mail = job(queue="mail", task="send")
    started = NOW - timedelta(seconds=1)
    reasons = (Hold("threads", "", ends_with_jobs=True),)
    sending = QueueContext(busy=(RunningJob(5, "send", started, "mail"), RunningJob(6, "send", started, "mail")))
    expected = expect(mail, learned(), reasons, {}, sending)
    assert seconds(expected) == (2.0, 5.0)
    unknown = sending._replace(busy=(*sending.busy, RunningJob(7, "report", started, "office")))
    assert seconds(expect(mail, learned(), reasons, {}, unknown)) == (None, None)


def ranged(expected):
    """The earliest and the latest start, in seconds from now."""
    return tuple((at - NOW).total_seconds() for at in (expected.start_earliest, expected.start_latest))


def spread(**distances_s):
    """What is known when jobs of `ai-batch` differ by so much from their usual time."""
    key = work_key("ai-batch", GENERATE, MODEL)
    kinds = {"turn": estimates.TURN, "turn_spread": estimates.TURN + estimates.SPREAD}
    return {**LEARNED, **{(kinds[name], key): Estimate(value, 50) for name, value in distances_s.items()}}


def test_a_start_is_expected_within_a_range_that_grows_with_how_much_jobs_differ():
    alike = expect(WAITING, learned(known=spread(turn=30.0, turn_spread=1.0)), (), {}, ahead(4))
    differing = expect(WAITING, learned(known=spread(turn=30.0, turn_spread=15.0)), (), {}, ahead(4))
    assert seconds(alike)[0] == seconds(differing)[0] == 120.0
    (earliest, latest), (earlier, later) = ranged(alike), ranged(differing)
    assert earlier < earliest < 120.0 < latest < later


def test_after_one_job_the_range_is_wide():
    once = {**LEARNED, (estimates.TURN, work_key("ai-batch", GENERATE, MODEL)): Estimate(30.0, 1)}
    earliest, latest = ranged(expect(WAITING, learned(known=once), (), {}, ahead(1)))
    assert earliest < 20.0
    assert latest > 40.0


def test_a_job_that_nothing_holds_starts_within_a_second():
    assert ranged(expect(WAITING, learned(), (), {}, QueueContext())) == (0.0, 1.0)


def test_a_kind_of_work_that_is_new_to_a_queue_takes_as_long_as_its_other_ones():
    known = {(estimates.TURN, work_key("ai-batch", GENERATE, MODEL)): Estimate(30.0, 9)}
    expected = expect(replace(WAITING, model="qwen3:4b"), learned(known=known), (), {}, ahead(2, model="qwen3:4b"))
    assert seconds(expected)[0] == 60.0


def test_the_jobs_ahead_in_a_held_queue_start_when_it_opens():
    window = Hold("window", "", NOW + timedelta(hours=2))
    expected = expect(WAITING, learned(), (window,), {"ai-batch": [window]}, ahead(1))
    assert seconds(expected) == (7220.0, 7240.0)
    assert expected.start_earliest > window.until


def test_a_running_attempt_that_people_interrupt_lasts_longer_than_it_has_left():
    running = replace(reservation(), task=GENERATE, started_at=NOW - timedelta(seconds=6), output_tokens=300)
    busy = learned(devices=(replace(LOADED, reservations=(running,)),), known=spread(turn=60.0, turn_spread=1.0))
    reasons = (Hold("device_busy", "", ends_with_jobs=True),)
    assert seconds(expect(WAITING, busy, reasons, {}, QueueContext()))[0] == 6.0, (
        "2 s are left of a run of 20, and its turn is 60"
    )


def test_the_memory_of_a_model_must_be_released_before_another_one_can_start():
    known = {**LEARNED, (estimates.RELEASE, model_key(MODEL)): Estimate(1.5, 9)}
    running = replace(reservation(), task=GENERATE, started_at=NOW, output_tokens=300, preempt_requested=True)
    busy = learned(devices=(replace(LOADED, reservations=(running,)),), known=known)
    reasons = (Hold("device_busy", "", ends_with_jobs=True),)
    same, other = replace(WAITING, queue="ai-realtime"), replace(WAITING, queue="ai-realtime", model="qwen3:4b")
    assert seconds(expect(same, busy, reasons, {}, QueueContext()))[0] == 0.0
    assert seconds(expect(other, busy, reasons, {}, QueueContext()))[0] == 1.5


def test_a_job_that_is_continued_has_half_its_work_left():
    continued = replace(learned(), models={MODEL: ModelSettings(MODEL, 10**9, resume="continue")})
    begun = QueueContext((Work("ai-batch", GENERATE, MODEL, 2, begun=1),))
    assert seconds(expect(WAITING, continued, (), {}, begun))[0] == 30.0


def test_a_range_is_worded_for_people():
    def worded(earliest_s, latest_s, middle_s=100):
        moments = [NOW + timedelta(seconds=seconds) for seconds in (middle_s, earliest_s, latest_s)]
        return Expectation(2, moments[0], None, *moments[1:]).worded(now=NOW)

    assert worded(90, 125).endswith("(1m 30s to 2m 5s from now)")
    assert "starts between" in worded(90, 125)
    assert "starts by" in worded(0, 125)
    assert worded(0, 125).endswith("(within 2m 5s)")
    assert "starts at" in worded(99.5, 100.5), "no more than a second"
    assert worded(0, 1, middle_s=0) == "expected: number 2 in its queue"
