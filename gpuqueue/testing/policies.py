"""Provides the tests that every policy must pass; policy authors subclass them.

from gpuqueue.testing.policies import PolicySuite

class TestThermal(PolicySuite):
    name = "thermal"                # its section in gpuqueue.toml
    toml = "[thermal]\\nlimit = 80"

    def make_plugin(self) -> object:
        return Thermal()
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.client.queue import GPUQueue
from gpuqueue.contract.hookspecs import HOOK_NAMES, PROJECT
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.verdicts import Verdict
from gpuqueue.simulators.card import SimulatedCard
from gpuqueue.simulators.nvml import simulated_nvml
from gpuqueue.testing.answers import what_is_wrong
from gpuqueue.testing.idle import run_until_idle
from gpuqueue.testing.queues import foreign_variables, queue_maker
from gpuqueue.testing.situations import SITUATIONS, questions

__all__ = ["PolicySuite"]

QUEUES = """\
[gpu]
budget = "5GB"
[queues.train]
gpu = true
backend = "none"
[queues.mail]
yields_to = ["train"]
"""


class PolicySuite:
    """Subclass it, define how to make the plugin, and pytest runs these tests on it.

    `name` is the name it is registered under, `toml` its section of the configuration.
    """

    name: str = "tested"
    toml: str = ""

    def make_plugin(self) -> object:
        """Make the plugin; called for each test."""
        raise NotImplementedError(f"{type(self).__name__} must define the plugin to test: def make_plugin(self): return …")

    # --- registering ---

    def test_it_is_registered_and_configured_under_its_name(self, queue_object: GPUQueue) -> None:
        assert self.name in dict(queue_object.plugins.names())

    def test_it_answers_at_least_one_hook(self, queue_object: GPUQueue) -> None:
        hooks = dict(queue_object.plugins.names())[self.name]
        assert hooks, f"{self.name} implements no hook: is @hookimpl missing? Hooks: {', '.join(HOOK_NAMES)}"

    def test_no_function_is_named_like_a_hook_without_being_marked(self) -> None:
        plugin = self.make_plugin()
        plugin = plugin() if isinstance(plugin, type) else plugin
        named = [name for name in HOOK_NAMES if callable(getattr(plugin, name, None))]
        unmarked = [name for name in named if not hasattr(getattr(plugin, name), f"{PROJECT}_impl")]
        assert not unmarked, f"never called: {', '.join(unmarked)}. Mark them with @hookimpl, or rename them"

    # --- deciding ---

    @pytest.mark.parametrize("situation", list(SITUATIONS))
    def test_it_raises_nothing_whatever_is_unknown(self, queue_object: GPUQueue, situation: str) -> None:
        list(self._answers(queue_object.plugins, situation))

    def test_its_answers_are_of_the_right_kind(self, queue_object: GPUQueue) -> None:
        for situation in SITUATIONS:
            for hook, details, answer in self._answers(queue_object.plugins, situation):
                wrong = answer is not None and what_is_wrong(hook, answer, details)
                assert not wrong, f"with {situation}, {hook} answered {answer!r}: {wrong}"

    def test_it_answers_the_same_for_the_same_view(self, queue_object: GPUQueue) -> None:
        for situation in SITUATIONS:
            first = list(self._answers(queue_object.plugins, situation))
            second = list(self._answers(queue_object.plugins, situation))
            for (hook, _, before), (_, _, after) in zip(first, second, strict=True):
                same = _comparable(before) == _comparable(after)
                assert same, f"with {situation}, {hook} answered {before!r} the first time and {after!r} the second"

    def test_it_leaves_the_view_as_it_is(self, queue_object: GPUQueue) -> None:
        for situation, make in SITUATIONS.items():
            view = make()
            for hook, _, _ in self._answers(queue_object.plugins, situation, view):
                assert view == make(), f"with {situation}, {hook} changed the view, which all plugins share"

    # --- at work ---

    def test_what_it_decides_is_told_by_holds_and_explain(self, queue_object: GPUQueue) -> None:
        jobs = [queue_object.verb(task, queue=queue).enqueue() for task, queue in (("learn", "train"), ("send", "mail"))]
        held = {hold.reason: hold.detail for holds in queue_object.holds().values() for hold in holds}
        assert "plugin_failed" not in held, held["plugin_failed"]
        for job in jobs:
            _assert_no_failure(queue_object.explain(job.id))

    def test_a_worker_decides_with_it(self, queue_object: GPUQueue, caplog: pytest.LogCaptureFixture) -> None:
        queue_object.task(name="learn", queue="train")(lambda: 7)
        queue_object.task(name="send", queue="mail")(lambda: 7)
        queue_object.task(name="fail", queue="mail", max_attempts=1)(_fail)
        jobs = [queue_object.enqueue(task) for task in ("learn", "send", "fail")]
        with simulated_nvml(SimulatedCard(speed=1000)), caplog.at_level(logging.ERROR, "gpuqueue"):
            left = run_until_idle(queue_object, may_wait=True)
        for explanation in left.values():
            _assert_no_failure(explanation)
        for job in jobs:
            error = job.refresh().error
            assert error is None or error.code != "internal", error.message
        assert not caplog.records, caplog.text

    @pytest.fixture
    def queue_object(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GPUQueue]:
        """A queue object with the plugin and the defaults, and two queues: `train` on a card, `mail` without."""
        for name in foreign_variables():
            monkeypatch.delenv(name)
        with queue_maker(tmp_path) as make:
            yield make(f"{QUEUES}{self.toml}\n", plugins={self.name: self.make_plugin()})

    def _answers(self, plugins: Plugins, situation: str, view: Any = None) -> Iterator[tuple[str, Any, Any]]:
        """Ask only this plugin every question of a situation: (hook, details, answer). Raises: PluginFailed."""
        for hook, asked in questions(SITUATIONS[situation]() if view is None else view).items():
            for details in asked:
                yield hook, details, plugins.ask(self.name, hook, details)


def _assert_no_failure(explanation: Explanation) -> None:
    failed = [reason.detail for reason in explanation.reasons if reason.source == "failure"]
    assert not failed, failed[0]


def _comparable(answer: Any) -> Any:
    """Leave out the wait before the next attempt, which has random jitter."""
    return type(answer) if isinstance(answer, Verdict) else answer


def _fail() -> None:
    raise RuntimeError("raised by the test suite")
