"""Every hook says what it is for, has an example, takes one argument, and is used by a test."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuqueue.contract import hookspecs

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


def test_the_details_of_hooks_are_frozen_and_documented() -> None:
    for name, details in vars(hookspecs).items():
        if name.endswith("Details") and inspect.isclass(details):
            assert dataclasses.is_dataclass(details)
            assert details.__dataclass_params__.frozen, name  # type: ignore[attr-defined]
            assert not (details.__doc__ or "").startswith(f"{name}("), f"{name} has no docstring of its own"
