"""A read-only mapping: it cannot be changed, and is otherwise a dict like any other."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from gpuqueue.domain.errors import PluginFailed
from gpuqueue.domain.frozen import FrozenDict
from gpuqueue.testing.views import view


@pytest.mark.parametrize(
    "change",
    [
        lambda mapping: mapping.update(a=2),
        lambda mapping: mapping.__setitem__("a", 2),
        lambda mapping: mapping.__delitem__("a"),
        lambda mapping: mapping.__ior__({"a": 2}),
        lambda mapping: mapping.pop("a"),
        lambda mapping: mapping.popitem(),
        lambda mapping: mapping.setdefault("b", 2),
        lambda mapping: mapping.clear(),
    ],
)
def test_it_cannot_be_changed(change: Callable[[Any], object]) -> None:
    mapping = FrozenDict({"a": 1})
    with pytest.raises(TypeError, match="read-only"):
        change(mapping)
    assert mapping == {"a": 1}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_view_is_copied_and_pickled(copied: Callable[[Any], Any]) -> None:
    seen = view()
    again = copied(seen)
    assert again == seen
    with pytest.raises(TypeError, match="read-only"):
        again.queues.clear()


def test_a_view_becomes_plain_data() -> None:
    seen = view()
    assert set(asdict(seen)["queues"]) == set(seen.queues)
    assert json.loads(json.dumps(seen.queues, default=str)).keys() == seen.queues.keys()


def test_a_plugins_failure_is_pickled_with_its_cause() -> None:
    again = pickle.loads(pickle.dumps(PluginFailed("mine", "queue_hold", ValueError("no"))))
    assert (again.plugin, again.hook, str(again)) == ("mine", "queue_hold", "plugin 'mine' failed in queue_hold: ValueError: no")
    assert repr(again.__cause__) == "ValueError('no')"
