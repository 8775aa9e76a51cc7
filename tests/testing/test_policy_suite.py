"""The suite for policies: the defaults pass it, and each of its tests finds the fault that it is there for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gpuqueue import ConfigurationError, PluginFailed, Retry, hookimpl
from gpuqueue.decisions.policies import default_policies
from gpuqueue.decisions.policies.availability import Availability
from gpuqueue.decisions.policies.device_health import DeviceHealth
from gpuqueue.decisions.policies.ordering import Ordering
from gpuqueue.decisions.policies.preemption import Preempting
from gpuqueue.decisions.policies.rates import Rates
from gpuqueue.decisions.policies.retention import Retention
from gpuqueue.decisions.policies.retries import Retries
from gpuqueue.decisions.policies.spills import Spills
from gpuqueue.decisions.policies.vram import Memory
from gpuqueue.decisions.policies.windows import Windows
from gpuqueue.decisions.policies.yielding import Yielding
from gpuqueue.plugins import Demand, Hold, Placement, Wait
from gpuqueue.testing.answers import what_is_wrong
from gpuqueue.testing.policies import PolicySuite
from gpuqueue.testing.queues import queue_maker
from gpuqueue.testing.situations import SITUATIONS, questions
from gpuqueue.testing.views import job

# --- the defaults ---


class TestAvailability(PolicySuite):
    make_plugin = Availability


class TestOrdering(PolicySuite):
    make_plugin = Ordering


class TestRetention(PolicySuite):
    make_plugin = Retention


class TestRetries(PolicySuite):
    make_plugin = Retries


class TestMemory(PolicySuite):
    make_plugin = Memory


class TestWindows(PolicySuite):
    make_plugin = Windows


class TestYielding(PolicySuite):
    make_plugin = Yielding


class TestDeviceHealth(PolicySuite):
    make_plugin = DeviceHealth


class TestPreempting(PolicySuite):
    make_plugin = Preempting


class TestRates(PolicySuite):
    make_plugin = Rates


class TestSpills(PolicySuite):
    make_plugin = Spills


def test_every_default_policy_goes_through_the_suite():
    tested = {suite.make_plugin for suite in PolicySuite.__subclasses__()}
    assert {type(plugin) for plugin in default_policies().values()} <= tested


# --- what each test finds ---


@pytest.fixture
def suite_of(tmp_path):
    """`suite_of(plugin)` is the suite over a plugin, and the queue object that its tests get."""
    with queue_maker(tmp_path) as make:

        def suite(plugin: object, **settings: Any) -> tuple[PolicySuite, Any]:
            suite = PolicySuite()
            suite.make_plugin = lambda: plugin  # type: ignore[method-assign]
            for name, value in settings.items():
                setattr(suite, name, value)
            toml = '[gpu]\nbudget = "5GB"\n[queues.train]\ngpu = true\nbackend = "none"\n[queues.mail]\n'
            return suite, make(toml, plugins={suite.name: plugin})

        yield suite


def holding(answer: Callable[[Any], Any]) -> object:
    class Holding:
        @hookimpl
        def queue_hold(self, details):
            return answer(details)

    return Holding()


def test_a_policy_whose_hooks_are_not_marked_is_found(suite_of):
    class Unmarked:
        def queue_hold(self, details): ...

    suite, gq = suite_of(Unmarked())
    with pytest.raises(AssertionError, match=r"never called: queue_hold\. Mark them with @hookimpl"):
        suite.test_no_function_is_named_like_a_hook_without_being_marked()
    with pytest.raises(AssertionError, match="tested implements no hook: is @hookimpl missing"):
        suite.test_it_answers_at_least_one_hook(gq)


def test_a_hook_that_does_not_exist_is_found_when_the_queue_object_is_made(suite_of):
    class Misspelt:
        @hookimpl
        def queue_hodl(self, details): ...

    with pytest.raises(ConfigurationError, match="unknown hook 'queue_hodl'"):
        suite_of(Misspelt())


def cards(details):
    return details.view.devices.values()


@pytest.mark.parametrize(
    ("takes_for_granted", "wrong_in"),
    [
        (lambda details: details.view.devices["gpu0"], {"queues but no device"}),
        (lambda details: [card.reading.at for card in cards(details)], {"a card that no worker has read"}),
        (
            lambda details: [card.reading and card.reading.temperature_c > 80 for card in cards(details)],
            {"a card that no driver here can read", "a card without a thermometer", "a card that is lost"},
        ),
        (lambda details: details.view.backends["ollama"], {"queues but no device"}),
        (lambda details: details.queue.gpu, set()),
    ],
    ids=["a device", "a reading", "a temperature", "a backend", "nothing"],
)
def test_a_policy_that_takes_something_for_granted_is_found(suite_of, takes_for_granted, wrong_in):
    suite, gq = suite_of(holding(lambda details: takes_for_granted(details) and None))
    failed = set()
    for situation in SITUATIONS:
        try:
            suite.test_it_raises_nothing_whatever_is_unknown(gq, situation)
        except PluginFailed as error:
            assert "plugin 'tested' failed in queue_hold" in str(error)
            failed.add(situation)
    assert failed == wrong_in


def test_an_answer_of_the_wrong_kind_is_found(suite_of):
    suite, gq = suite_of(holding(lambda details: "hot"))
    with pytest.raises(AssertionError, match=r"with .*, queue_hold answered 'hot': expected a Hold or None"):
        suite.test_its_answers_are_of_the_right_kind(gq)


def test_a_policy_that_throws_dice_is_found(suite_of):
    suite, gq = suite_of(holding(lambda details: Hold("dice", str(random.random()))))
    with pytest.raises(AssertionError, match=r"queue_hold answered .* the first time and Hold.* the second"):
        suite.test_it_answers_the_same_for_the_same_view(gq)


def test_a_policy_that_changes_the_view_is_found(suite_of):
    changing = holding(lambda details: object.__setattr__(details.view, "models", {}))
    suite, gq = suite_of(changing)
    with pytest.raises(AssertionError, match="queue_hold changed the view, which all plugins share"):
        suite.test_it_leaves_the_view_as_it_is(gq)
    popping = holding(lambda details: details.view.devices.pop("gpu0"))
    suite, gq = suite_of(popping)
    with pytest.raises(PluginFailed, match="failed in queue_hold: TypeError: this mapping is read-only"):
        suite.test_it_leaves_the_view_as_it_is(gq)


@pytest.mark.parametrize("hook", ["queue_hold", "job_demand", "place_job", "attempt_failed", "order_candidates", "job_finished"])
def test_a_policy_that_fails_at_work_is_found(suite_of, caplog, hook):
    def fail(self, details):
        raise LookupError("no such thing")

    failing = type("Failing", (), {hook: hookimpl(fail)})()
    suite, gq = suite_of(failing)
    with pytest.raises(AssertionError, match="no such thing"):
        suite.test_a_worker_decides_with_it(gq, caplog)
    if hook in ("queue_hold", "job_demand", "place_job"):
        suite, gq = suite_of(failing)
        with pytest.raises(AssertionError, match="no such thing"):
            suite.test_what_it_decides_is_told_by_holds_and_explain(gq)


def test_a_suite_without_a_plugin_says_what_to_write():
    with pytest.raises(NotImplementedError, match="PolicySuite must define the plugin to test: def make_plugin"):
        PolicySuite().make_plugin()


# --- what a right answer is ---

PLACING = questions(SITUATIONS["a cool card and nothing to do"]())["place_job"][0]
ORDERING = questions(SITUATIONS["a cool card and nothing to do"]())["order_candidates"][-1]
NAIVE = job().scheduled_at.replace(tzinfo=None)


@pytest.mark.parametrize(
    ("hook", "answer", "wrong"),
    [
        ("queue_hold", Hold("hot", "too hot"), ""),
        ("queue_hold", Hold("", "too hot"), "reason"),
        ("queue_hold", Hold("hot", " "), "detail"),
        ("queue_hold", Hold("hot", "too hot", NAIVE), "until must be an aware datetime"),
        ("queue_hold", Hold("hot", "too hot", ends_with_jobs="yes"), "ends_with_jobs must be True or False"),
        ("place_job", Wait("hot", "too hot", advice=None), "advice must be a string"),
        ("queue_hold", True, "a Hold or None"),
        ("job_demand", Demand(1), ""),
        ("job_demand", 1, "a Demand or None"),
        ("job_demand", Demand(-1), "vram_bytes"),
        ("job_demand", Demand(1.5), "vram_bytes"),  # type: ignore[arg-type]
        ("job_demand", Demand(1, None), "model must be a string"),  # type: ignore[arg-type]
        ("place_job", Placement("gpu0", 0), ""),
        ("place_job", Placement("gpu7", 0), "unknown device 'gpu7'. Devices: gpu0"),
        ("place_job", Placement("gpu0", -1), "reserved_bytes"),
        ("place_job", Wait("later", ""), "detail"),
        ("place_job", Hold("a", "b"), "a Placement, a Wait or None"),
        ("order_candidates", ORDERING.candidates[::-1], ""),
        ("order_candidates", [7], "a sequence of the candidates"),
        ("order_candidates", [job(99)], "jobs [99] are not candidates"),
        ("order_candidates", [ORDERING.candidates[0]] * 2, "a candidate appears more than once"),
        ("attempt_failed", Retry(), ""),
        ("attempt_failed", Retry, "expected an object, Retry(…)"),
        ("attempt_failed", True, "a Retry, a Snooze, a Discard or None"),
        ("retention", {"completed": None, "discarded": 5.0}, ""),
        ("retention", {"complete": 5.0}, "{state: seconds}"),
        ("retention", {"completed": -5.0}, "-5.0 is not a number of seconds"),
        ("retention", {"completed": "7d"}, "'7d' is not a number of seconds"),
    ],
)
def test_a_wrong_answer_is_told_from_a_right_one(hook, answer, wrong):
    found = what_is_wrong(hook, answer, ORDERING if hook == "order_candidates" else PLACING)
    assert bool(found) == bool(wrong)
    assert wrong in found


def test_the_situations_differ_and_are_made_anew():
    views = [make() for make in SITUATIONS.values()]
    assert all(a != b for number, a in enumerate(views) for b in views[:number])
    assert views == [make() for make in SITUATIONS.values()]
    assert replace(views[0]) is not views[0]
