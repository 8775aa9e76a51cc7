"""How durations, sizes and times are read and worded."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.units import format_duration, format_size, from_us, parse_duration, parse_size, parse_time_us, to_us
from gpuqueue.domain.verdicts import Retry, Snooze


@pytest.mark.parametrize(
    ("given_value", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("90s", 90),
        ("250ms", 0.25),
        ("0s", 0),
        ("2d", 172_800),
        ("2.4 s", 2.4),
        ("1.5h", 5400),
        (" 5M ", 300),
        ("90", 90),
        (90, 90),
        (0.5, 0.5),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_duration_is_read_as_seconds(given_value: object, seconds: float) -> None:
    assert parse_duration(given_value, what="delay") == seconds


@pytest.mark.parametrize(
    ("given_value", "hint"),
    [
        ("", "must be a duration, not"),
        ("soon", "must be a duration, not"),
        ("5x", "unknown unit 'x'"),
        ("5 weeks", "unknown unit 'weeks'"),
        ("1h30", "30 has no unit"),
        ("30m1h", "largest first"),
        ("5m5m", "each unit once"),
        ("1,5h", '"1.5h"'),
        ("-5m", "cannot be negative"),
        (-1, "cannot be negative"),
        (timedelta(seconds=-1), "cannot be negative"),
        (math.inf, "must be a finite number"),
        (math.nan, "must be a finite number"),
        ("inf", "must be a duration, not"),
        ("40000d", "the maximum is 100 years"),
        (1e300, "the maximum is 100 years"),
        (10**400, "must be a finite number"),
        ("9" * 5000, "must be a duration, not"),
        ("٥m", "must be a duration, not"),
        (True, "must be a duration, not"),
        (None, "must be a duration, not"),
        ([5], "must be a duration, not"),
    ],
)
def test_what_is_no_duration_is_refused_by_name_with_examples(given_value: object, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(given_value, what="retry_every")
    message = str(caught.value)
    assert "retry_every" in message
    assert repr(given_value)[:150] in message
    assert hint in message


@pytest.mark.parametrize(
    ("given_value", "size_bytes"),
    [
        ("5GB", 5 * 10**9),
        ("5GiB", 5 * 2**30),
        ("4.5GB", 4_500_000_000),
        ("4.5 GB", 4_500_000_000),
        ("512MB", 512 * 10**6),
        ("64 kB", 64_000),
        ("16KiB", 16_384),
        ("1tb", 10**12),
        ("0B", 0),
        ("0", 0),
        (0, 0),
        ("1048576", 2**20),
        (2**20, 2**20),
        (5e9, 5 * 10**9),
        ("0.1GB", 100_000_000),
        ("1.1KiB", 1126),
    ],
)
def test_a_size_is_read_as_bytes(given_value: object, size_bytes: int) -> None:
    result = parse_size(given_value, what="budget")
    assert result == size_bytes
    assert isinstance(result, int)


@pytest.mark.parametrize(
    ("given_value", "hint"),
    [
        ("", "must be a size, not"),
        ("big", "must be a size, not"),
        ("4,5GB", '"4.5GB"'),
        ("1,000MB", '"1.000MB" or "1000MB"'),
        ("5G", '"5GB" (powers of 1000) or "5GiB" (powers of 1024)'),
        ("5XB", "unknown unit 'xb'"),
        ("5GB 3MB", "must be a size, not"),
        (5, 'write the unit, for example "5GB" or "5B"'),
        (" 5 ", "write the unit"),
        (999_999, "write the unit"),
        ("1.5", "in bytes and must be an integer"),
        (1.5, "in bytes and must be an integer"),
        ("-1GB", "cannot be negative"),
        (-1, "cannot be negative"),
        (math.inf, "must be a finite number"),
        (math.nan, "must be a finite number"),
        ("99999999TB", "the size is too large"),
        (2**63, "the size is too large"),
        (True, "must be a size, not"),
        (None, "must be a size, not"),
    ],
)
def test_what_is_no_size_is_refused_by_name_with_examples(given_value: object, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(given_value, what="gpu.budget")
    message = str(caught.value)
    assert "gpu.budget" in message
    assert repr(given_value)[:150] in message
    assert hint in message


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0001, "0 s"),
        (0.25, "250 ms"),
        (0.9996, "1 s"),
        (2.4, "2.4 s"),
        (30, "30 s"),
        (59.97, "1m"),
        (300, "5m"),
        (95, "1m 35s"),
        (3599.7, "1h"),
        (5400, "1h 30m"),
        (3600 + 59 * 60 + 40, "2h"),
        (86_399, "1d"),
        (183_600, "2d 3h"),
        (-300, "-5m"),
    ],
)
def test_a_duration_is_worded_by_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (4_500_000_000, "4.5 GB"),
        (512_000_000, "512 MB"),
        (5 * 2**30, "5.37 GB"),
        (999_999_999, "1 GB"),
        (100_000_000_000, "100 GB"),
        (-500_000_000, "-500 MB"),
    ],
)
def test_a_size_is_worded_in_decimal_units(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(st.floats(min_value=0.001, max_value=30 * 86_400))
def test_a_worded_duration_reads_back_as_nearly_the_same(seconds: float) -> None:
    worded = format_duration(seconds)
    back = parse_duration(worded, what="worded")
    assert back == pytest.approx(seconds, rel=0.5 / 24, abs=0.0006 if back < 1 else 0.0501)
    assert format_duration(back) == worded


@given(st.integers(min_value=0, max_value=10**15))
def test_a_worded_size_reads_back_as_nearly_the_same(size_bytes: int) -> None:
    worded = format_size(size_bytes)
    back = parse_size(worded, what="worded")
    assert back == pytest.approx(size_bytes, rel=0.005)
    assert format_size(back) == worded


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_units_add_up(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d{hours}h{minutes}m{seconds}s"
    assert parse_duration(text, what="sum") == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_survives_as_microseconds(moment: datetime) -> None:
    assert from_us(to_us(moment)) == moment
    assert from_us(to_us(moment)).tzinfo is UTC


def test_microseconds_count_from_the_epoch_whatever_the_zone() -> None:
    assert to_us(datetime(1970, 1, 1, 7, 0, 1, 5, tzinfo=timezone(timedelta(hours=7)))) == 1_000_005
    second_of_two = datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    assert from_us(to_us(second_of_two)) == datetime(2025, 10, 26, 1, 30, tzinfo=UTC)


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(UsageError, match="no time zone"):
        to_us(datetime(2025, 1, 1))


@pytest.mark.parametrize(
    ("given_value", "hint"),
    [
        ("18:00", "must be an aware datetime, not '18:00'"),
        (5, "must be an aware datetime, not 5"),
        (datetime(2030, 1, 1), "has no time zone"),
        (datetime.max.replace(tzinfo=UTC), "the years 1000 to 9998"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))), "the years 1000 to 9998"),
        (datetime(9999, 1, 1, 0, 0, 1, tzinfo=UTC), "the years 1000 to 9998"),
        (datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), "the years 1000 to 9998"),
    ],
)
def test_a_time_that_no_clock_can_show_is_refused_by_name(given_value: object, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_time_us(given_value, what="at")
    assert str(caught.value).startswith("at ")
    assert hint in str(caught.value)


@pytest.mark.parametrize("year", [1000, 1970, 9998])
def test_every_zone_can_show_a_time_that_is_taken(year: int) -> None:
    us = parse_time_us(datetime(year, 12, 31, 23, 59, tzinfo=UTC), what="at")
    for hours in (-14, 14):
        assert from_us(us).astimezone(timezone(timedelta(hours=hours)))


@pytest.mark.parametrize("verdict", [lambda at: Retry(at=at), lambda at: Snooze(until=at)])
def test_a_verdict_takes_no_other_time(verdict: Callable[[datetime], object]) -> None:
    with pytest.raises(UsageError, match="the years 1000 to 9998"):
        verdict(datetime.max.replace(tzinfo=UTC))
