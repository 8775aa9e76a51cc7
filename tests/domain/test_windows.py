"""How a pause window and a time zone are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.windows import EVERY_DAY, Window, parse_window, parse_zone

MON, TUE, WED, THU, FRI, SAT, SUN = range(7)


@pytest.mark.parametrize(
    ("text", "weekdays", "start", "end"),
    [
        ("09:00-18:00", EVERY_DAY, 540, 1080),
        ("9:00 - 18:00", EVERY_DAY, 540, 1080),
        ("09:00–18:00", EVERY_DAY, 540, 1080),
        ("22:00-06:00", EVERY_DAY, 1320, 360),
        ("22:00-24:00", EVERY_DAY, 1320, 1440),
        ("22:00-00:00", EVERY_DAY, 1320, 0),
        ("mon-fri 09:00-18:00", {MON, TUE, WED, THU, FRI}, 540, 1080),
        ("sat,sun 00:00-24:00", {SAT, SUN}, 0, 1440),
        ("fri-mon 01:00-02:00", {FRI, SAT, SUN, MON}, 60, 120),
        ("Mon, wed-thu 01:00-02:00", {MON, WED, THU}, 60, 120),
        ("Monday 22:00-02:00", {MON}, 1320, 120),
    ],
)
def test_a_window_is_read(text: str, weekdays: set[int], start: int, end: int) -> None:
    assert parse_window(text) == Window(frozenset(weekdays), start, end)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "invalid window"),
        ("9-18", "invalid window"),
        ("09:00", "invalid window"),
        ("09:00-18:00 mon", "invalid window"),
        ("09:00-18:00:00", "invalid window"),
        ("mon- 09:00-18:00", "invalid window"),
        ("09:00-09:00", "starts and ends at the same time; for the whole day, use 00:00-24:00"),
        ("25:00-26:00", "is not a time from 00:00 to 24:00"),
        ("09:60-10:00", "is not a time from 00:00 to 24:00"),
        ("24:00-06:00", "starts at 24:00"),
        ("mnday 09:00-18:00", "did you mean 'monday'?"),
        ("mon-fry 09:00-18:00", "unknown weekday 'fry'"),
        ("mon,,tue 09:00-18:00", "unknown weekday ''"),
    ],
)
def test_what_is_no_window_is_refused_with_the_reason(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_window(text)
    assert repr(text) in str(caught.value)
    assert hint in str(caught.value)


@given(
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(0, 1440),
)
def test_a_worded_window_reads_back_as_the_same(weekdays: frozenset[int], start: int, end: int) -> None:
    if start != end:
        window = Window(weekdays, start, end)
        assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    ("window", "text"),
    [
        ("9:00-18:00", "09:00-18:00"),
        ("mon,tue,wed,thu,fri 9:00-18:00", "mon-fri 09:00-18:00"),
        ("sun,sat 9:00-18:00", "sat,sun 09:00-18:00"),
        ("sat-mon,wed 9:00-18:00", "wed,sat-mon 09:00-18:00"),
    ],
)
def test_a_window_is_worded_in_one_way(window: str, text: str) -> None:
    assert str(parse_window(window)) == text


def test_a_zone_is_found_by_its_name() -> None:
    assert parse_zone("Asia/Bangkok").key == "Asia/Bangkok"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("asia/bangkok", "did you mean 'Asia/Bangkok'?"),
        ("Asia/Bankok", "did you mean 'Asia/Bangkok'?"),
        ("Asia", "unknown time zone 'Asia'"),
        ("../etc/passwd", "unknown time zone"),
        ("/etc/localtime", "unknown time zone"),
        ("", "unknown time zone ''"),
    ],
)
def test_an_unknown_zone_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_zone(name)
    assert hint in str(caught.value)
