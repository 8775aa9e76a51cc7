"""Every hook says what it is for, has an example, takes one argument, and is used by a test."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuqueue import plugins
from gpuqueue.contract import hookspecs
from gpuqueue.domain.frozen import FrozenDict
from gpuqueue.domain.job import Event
from gpuqueue.domain.view import View
from tests.contract.readme import kind_of

TESTS = Path(__file__).parents[1]


def hooks() -> Iterator[tuple[str, Callable[..., object]]]:
    for group in hookspecs.SPECIFICATIONS:
        for name, hook in vars(group).items():
            if not name.startswith("_"):
                yield name, hook


@pytest.mark.parametrize(("name", "hook"), list(hooks()), ids=[name for name, _ in hooks()])
def test_a_hook_has_a_docstring_with_an_example_and_one_argument(name: str, hook: Callable[..., object]) -> None:
    said, _, example = (hook.__doc__ or "").partition("Example:\n")
    assert said.count("\n\n") >= 2, f"{name} says in one line what it is for, then when it is called and with what"
    assert said.rstrip().endswith(".")
    assert example.strip(), f"{name} has no example"
    assert list(inspect.signature(hook).parameters) == ["self", "details"]


@pytest.mark.parametrize("name", [name for name, _ in hooks()])
def test_a_hook_is_exercised_by_a_test(name: str) -> None:
    used = [path.name for path in TESTS.rglob("test_*.py") if re.search(rf"\b{name}\b", path.read_text())]
    assert set(used) - {Path(__file__).name}, f"no test uses the hook {name}"


@pytest.mark.parametrize(("name", "hook"), list(hooks()), ids=[name for name, _ in hooks()])
def test_what_a_hook_gets_is_one_frozen_object_that_is_documented_and_public(name: str, hook: Callable[..., object]) -> None:
    kind = kind_of(hook)
    assert getattr(plugins, kind.__name__) is kind
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(kind)
    assert not (kind.__doc__ or "").startswith(f"{kind.__name__}("), "it has no docstring of its own"
    fields = {field.name: str(field.type).partition("[")[0] for field in dataclasses.fields(kind)}
    assert not {"dict", "list", "set", "Sequence"} & set(fields.values()), "a plugin could change what is not its own"
    mappings = [field for field, type_ in fields.items() if type_ == "Mapping"]
    if kind is not Event:  # its `data` is read anew for the plugins, which write it elsewhere as JSON
        made = kind(**{field: {} if field in mappings else None for field in fields})
        assert [field for field in mappings if not isinstance(getattr(made, field), FrozenDict)] == []


def test_the_mappings_of_a_view_cannot_be_changed() -> None:
    view = View(now=datetime(2026, 3, 2, tzinfo=UTC), queues={}, devices={}, backends={}, models={})
    for seen in (view, dataclasses.replace(view, queues={})):
        fields = [field.name for field in dataclasses.fields(View) if str(field.type).startswith("Mapping")]
        assert fields
        assert [name for name in fields if not isinstance(getattr(seen, name), FrozenDict)] == []
