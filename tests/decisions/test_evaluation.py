"""Deciding: what the view and the plugins' answers come to; a plugin that fails or answers nonsense starts nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from gpuqueue.contract.hookspecs import hookimpl
from gpuqueue.contract.plugin_set import ANSWERS, Plugins
from gpuqueue.decisions.evaluation import decide_demand, decide_holds, explain, limited, order, place
from gpuqueue.decisions.policies import default_policies
from gpuqueue.domain.answers import Demand, Hold, Placement
from gpuqueue.domain.errors import ConfigurationError, PluginFailed
from gpuqueue.domain.explanation import QueueContext, RunningJob, Work
from gpuqueue.domain.job import JobErrorRecord, State
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import DeviceView, Pause, QueueView
from gpuqueue.domain.yielding import yielding_order
from gpuqueue.testing.views import BATCH, GPU0, MAIL, NOW, REALTIME, job, reservation, view


def plugins(*others: object) -> Plugins:
    found = Plugins(default_policies(), discover=False)
    for number, plugin in enumerate(others):
        found.register(plugin, f"mine{number}")
    return found


class Answers:
    """A plugin that answers every decision with the same."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def _say(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @hookimpl
    def queue_hold(self, details):
        return self._say()

    @hookimpl
    def job_demand(self, details):
        return self._say()

    @hookimpl
    def place_job(self, details):
        return self._say()

    @hookimpl
    def order_candidates(self, details):
        return self._say()


BROKEN = Answers(RuntimeError("oops"))


def explained(job, view, *others, ahead_count=0):
    ahead = (Work(job.queue, job.task, "", ahead_count),) if ahead_count else ()
    context = QueueContext(ahead, (RunningJob(7, job.task, NOW),))
    return explain(job, view, plugins(*others), context, worker_command="gpuqueue worker")


def test_a_queue_may_start_jobs_when_nothing_holds_it():
    assert decide_holds(view(), plugins()) == {"ai-realtime": (), "ai-batch": (), "mail": ()}


def test_every_reason_counts_and_the_pause_comes_first():
    pause = Pause("ana", "update", NOW, NOW + timedelta(hours=1))
    busy = view(QueueView(REALTIME, running_count=1), QueueView(BATCH, paused=pause))
    holds = decide_holds(busy, plugins(Answers(Hold("mine", "because"))))
    assert [hold.reason for hold in holds["ai-batch"]] == ["paused", "mine", "yielding"]
    until, advice = NOW + timedelta(hours=1), "gpuqueue resume ai-batch"
    assert holds["ai-batch"][0] == Hold("paused", "paused by ana (update)", until, advice=advice)
    assert [hold.source for hold in holds["ai-batch"]] == ["pause", "plugin", "plugin"]


def test_a_queue_is_decided_after_those_that_it_yields_to():
    seen = []

    class Watch:
        @hookimpl
        def queue_hold(self, details):
            seen.append((details.queue.name, sorted(details.holds)))

    decide_holds(view(QueueView(BATCH), QueueView(REALTIME)), plugins(Watch()))
    assert seen == [("ai-realtime", []), ("ai-batch", ["ai-realtime"])]


def test_queues_that_yield_in_a_circle_are_refused():
    a, b = QueueSettings("a", yields_to=("b",)), QueueSettings("b", yields_to=("a",))
    with pytest.raises(ConfigurationError, match="cycle: a → b → a"):
        yielding_order({"a": a, "b": b})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("oops"), "plugin 'mine0' failed in queue_hold: RuntimeError: oops"),
        ("no", "returned 'no'; expected a Hold or None"),
        (Hold("mine", "wait", datetime(2026, 1, 1)), "until must be an aware datetime, or None"),
        (Hold("mine", 3), "must be non-empty strings"),
        (Hold("mine", "wait", advice=None), "advice must be a string"),
    ],
)
def test_a_plugin_that_fails_about_a_queue_holds_it(answer, said):
    for holds in decide_holds(view(), plugins(Answers(answer))).values():
        assert [hold.reason for hold in holds] == ["plugin_failed"]
        assert said in holds[0].detail


@pytest.mark.parametrize("answer", [RuntimeError("oops"), "no"])
def test_a_plugin_that_fails_about_limits_holds_the_queue(answer):
    class Failing:
        @hookimpl
        def queue_limits(self, details):
            if isinstance(answer, Exception):
                raise answer
            return answer

    seen = limited(view(), plugins(Failing()))
    assert {name: queue.settings for name, queue in seen.queues.items()} == {
        name: queue.settings for name, queue in view().queues.items()
    }
    for holds in decide_holds(seen, plugins()).values():
        assert [(hold.source, hold.plugin) for hold in holds] == [("failure", "mine0")]
        assert "failed in queue_limits" in holds[0].detail


@pytest.mark.parametrize("hook", ANSWERS)
def test_an_answer_of_the_wrong_kind_is_the_plugins_failure(hook):
    class Wrong:
        pass

    setattr(Wrong, hook, hookimpl(lambda self, details: "no"))
    with pytest.raises(PluginFailed, match=f"plugin 'mine0' failed in {hook}: TypeError: returned 'no'; expected "):
        plugins(Wrong()).first(hook, None)


def test_the_answer_registered_last_comes_first():
    mine, theirs = Answers(Demand(1)), Answers(Demand(2))
    assert decide_demand(job(), view(), plugins(mine, theirs)) == Demand(2)
    assert decide_demand(job(), view(), plugins(mine, Answers(None))) == Demand(1)
    assert decide_demand(job(), view(), plugins()) == Demand(4_500_000_000, "gemma4:e4b")


def test_a_job_that_no_plugin_sizes_runs_alone_and_a_failure_is_told():
    nobody = Plugins({}, discover=False)
    assert decide_demand(job(), view(), nobody) == Demand(GPU0.budget_bytes)
    with pytest.raises(PluginFailed, match="oops"):
        decide_demand(job(), view(), plugins(BROKEN))


def test_a_job_is_placed_by_the_first_answer():
    assert place(job(demand_bytes=5), view(), plugins()) == Placement("gpu0", 5)
    assert place(job(demand_bytes=5), view(), plugins(Answers(Placement("gpu0", 9)))) == Placement("gpu0", 9)
    assert place(job(), view(), Plugins({}, discover=False)) == Hold("no_device", "no plugin places jobs on a device")


@pytest.mark.parametrize("answer", [RuntimeError("oops"), "gpu0", Placement("gpu9", 5)])
def test_a_plugin_that_fails_to_place_a_job_makes_it_wait(answer):
    assert place(job(demand_bytes=5), view(), plugins(Answers(answer))).reason == "plugin_failed"


def test_candidates_are_put_into_the_order_that_a_plugin_says():
    first, second = job(1), job(2)
    assert order([second, first], view(), plugins()) == [first, second]
    assert order([first, second], view(), plugins(Answers([second]))) == [second]
    assert order([second, first], view(), Plugins({}, discover=False)) == [second, first]


@pytest.mark.parametrize("answer", [RuntimeError("oops"), 7, [7], [job(9)]])
def test_an_order_that_is_none_is_a_failure(answer):
    with pytest.raises(PluginFailed, match="order_candidates"):
        order([job(1)], view(), plugins(Answers(answer)))


# --- explaining ---


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"state": State.RUNNING, "attempt": 1, "device": "gpu0"}, "job 1: running on gpu0, attempt 1 of 3"),
        (
            {"state": State.RUNNING, "attempt": 1, "worker_id": "w"},
            "job 1: running, attempt 1 of 3\n"
            "  - worker_gone: its worker w is no longer running; another worker will take over the job\n"
            "  → start a worker: gpuqueue worker",
        ),
        ({"state": State.COMPLETED, "attempt": 2}, "job 1: completed in attempt 2"),
        ({"state": State.CANCELLED}, "job 1: cancelled\n  → gpuqueue retry 1"),
        (
            {"state": State.DISCARDED, "error": JobErrorRecord("failed", "no")},
            "job 1: discarded: no (failed)\n  → gpuqueue retry 1",
        ),
        ({}, "job 1: ready; a worker will pick it up shortly"),
    ],
)
def test_each_state_is_explained(changes, text):
    assert str(explained(job(**changes), view())) == text


def test_a_waiting_job_is_told_every_reason():
    busy = view(
        QueueView(REALTIME, running_count=1),
        QueueView(BATCH, running_count=1, served=False),
        devices=(DeviceView(GPU0, reservations=(reservation(),)),),
    )
    found = explained(job(), busy, ahead_count=10_000)
    assert [hold.reason for hold in found.reasons] == ["no_worker", "yielding", "concurrency", "device_busy", "behind"]
    assert "at least 10000 jobs in ai-batch are ahead of it" in str(found)
    assert found.advice == "start a worker: gpuqueue worker"


def test_a_postponed_job_is_told_what_ends_its_wait():
    text = str(explained(job(state=State.RETRYABLE, waiting_for="ollama", error=JobErrorRecord("unavailable", "away")), view()))
    assert "retryable: away; waiting for ollama until" in text


def test_a_job_whose_memory_is_not_back_is_told_so():
    text = str(explained(job(device="gpu0"), view()))
    assert "clean_up: waiting for its last attempt's memory on gpu0 to be released" in text


def test_a_plugin_that_fails_about_a_job_is_its_reason():
    only = replace(BATCH, yields_to=())
    found = explained(job(), view(QueueView(only)), BROKEN)
    assert [hold.reason for hold in found.reasons] == ["plugin_failed", "plugin_failed"]
    assert "mine0' failed in job_demand: RuntimeError: oops" in found.reasons[1].detail


def test_a_job_of_a_queue_without_a_gpu_is_not_told_of_devices():
    assert explained(job(queue="mail", task="send"), view(QueueView(MAIL)), ahead_count=2).reasons == (
        Hold("behind", "2 jobs in mail are ahead of it", ends_with_jobs=True),
    )
