"""What is stored as JSON is read again as it was given, or is refused with the place of what cannot be."""

from __future__ import annotations

import json
import threading
from enum import IntEnum
from typing import Any

import pytest

from gpuqueue.domain.errors import PayloadError
from gpuqueue.domain.json_text import DEEPEST, to_json

LIMIT_BYTES = 10**8


class Size(IntEnum):
    small = 1


class Name(str):
    pass


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def stored(value: Any) -> str:
    return to_json(value, LIMIT_BYTES, "the arguments of walk")


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"x": {1: "a", "1": "b"}}, "the key 1 of x"),
        ({"x": {"when": [{1: "a"}]}}, "the key 1 of x.when[0]"),
        ({"x": {True: 1}}, "the key True of x"),
        ({"x": {None: 1}}, "the key None of x"),
        ({"x": {-1.5: 1}}, "the key -1.5 of x"),
        ({"x": {1e300: 1}}, "the key 1e+300 of x"),
        ({"x": {Size.small: 1}}, f"the key {Size.small!r} of x"),
        ({"x": {(1, 2): 1}}, "the key (1, 2) of x"),
        ({"x": {b"name": 1}}, "the key b'name' of x"),
        ({"a name": [[], ({"no-name": {2: 1}},)]}, "the key 2 of ['a name'][1][0]['no-name']"),
        ({7: 1}, "the key 7 must"),
    ],
)
def test_a_key_that_is_no_text_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(PayloadError) as refused:
        stored(value)
    assert str(refused.value).startswith(f"the arguments of walk: {place}")
    assert "must be text" in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        {"1": "a", "true": "b", "null": {"-1.5": []}},
        {"text": '"1": {"true":'},
        {"x": {Name("1"): 1}},
        {"x": [{"": {}}]},
        {"é": {"ß": "\udcff"}},
        nested(DEEPEST),
        {"flat": [[] for _ in range(DEEPEST + 1)]},
        {"text": "[" * (3 * DEEPEST)},
    ],
)
def test_text_as_keys_and_lists_in_lists_come_back_as_they_were(value: Any) -> None:
    assert json.loads(stored(value)) == value


@pytest.mark.parametrize("depth", [DEEPEST + 1, 700, 100_000])
def test_what_a_worker_may_be_unable_to_read_is_refused_with_the_limit(depth: int) -> None:
    with pytest.raises(PayloadError, match=rf"x\[0\].* deeply than the limit of {DEEPEST} levels"):
        stored({"x": nested(depth)})


def test_the_deepest_value_is_read_in_a_thread_with_a_long_stack() -> None:
    read = []

    def deep(frames: int, text: str) -> None:
        read.append(json.loads(text)) if frames == 0 else deep(frames - 1, text)

    thread = threading.Thread(target=deep, args=(300, stored(nested(DEEPEST))))
    thread.start()
    thread.join()
    assert read == [nested(DEEPEST)]


def test_lists_that_lie_in_themselves_are_refused() -> None:
    value: list[Any] = []
    value.extend([value, value, {"more": value}])
    with pytest.raises(PayloadError, match="the limit of"):
        stored({"x": value})


def test_a_list_that_lies_in_others_many_times_is_stored_as_often() -> None:
    value: Any = [1]
    for _ in range(10):
        value = [value, value]
    assert json.loads(stored({"x": value})) == {"x": value}
