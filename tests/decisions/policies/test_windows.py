"""When pause windows hold a queue, also where the clock jumps.

The oracle walks the minutes of a zone's clock and applies the rules to what the clock shows, without any offsets.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pluggy
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gpuqueue.contract.hookspecs import PROJECT, Decisions, QueueHoldDetails
from gpuqueue.decisions.policies.windows import Windows, parse_window
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.domain.view import View
from gpuqueue.domain.windows import FOREVER, Window, held_until, next_edge

BANGKOK = ZoneInfo("Asia/Bangkok")
BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = timedelta(minutes=1)


def at(text: str, zone: ZoneInfo = BANGKOK, *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


def hold(now: datetime, *pause: str, timezone: str = "Asia/Bangkok") -> Hold | None:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Decisions)
    manager.register(Windows())
    view = View(now=now, queues={}, devices={}, backends={}, models={})
    details = QueueHoldDetails(QueueSettings("ai-batch", pause=pause, timezone=timezone), view, holds={})
    answers = manager.hook.queue_hold(details=details)
    return answers[0] if answers else None


def test_a_queue_without_windows_is_never_held() -> None:
    assert hold(at("2025-06-02 10:00")) is None


def test_a_queue_is_held_inside_its_window_and_says_until_when() -> None:
    assert hold(at("2025-06-02 10:00"), "09:00-18:00") == Hold(
        "window", "paused 09:00-18:00 Asia/Bangkok", datetime(2025, 6, 2, 11, tzinfo=UTC)
    )


def test_a_queue_is_free_outside_its_window() -> None:
    assert hold(at("2025-06-02 08:59:59"), "09:00-18:00") is None
    assert hold(at("2025-06-02 09:00"), "09:00-18:00") is not None
    assert hold(at("2025-06-02 17:59:59.999999"), "09:00-18:00") is not None
    assert hold(at("2025-06-02 18:00"), "09:00-18:00") is None


def test_only_the_open_windows_are_named() -> None:
    answer = hold(at("2025-06-02 10:00"), "mon-fri 09:00-18:00", "22:00-06:00", "08:00-12:00")
    assert answer is not None
    assert answer.detail == "paused mon-fri 09:00-18:00, 08:00-12:00 Asia/Bangkok"


def test_until_is_when_overlapping_and_adjoining_windows_are_all_over() -> None:
    answer = hold(at("2025-06-02 10:00"), "09:00-12:00", "12:00-14:00", "13:30-15:00", "15:01-16:00")
    assert answer is not None
    assert answer.until == at("2025-06-02 15:00")


def test_a_pause_of_the_whole_week_says_so_and_has_no_end() -> None:
    for pause in (["00:00-24:00"], ["mon-fri 00:00-24:00", "sat,sun 00:00-24:00"], ["06:00-18:00", "18:00-06:00"]):
        answer = hold(at("2025-06-02 10:00"), *pause)
        assert answer is not None
        assert answer.until is None
        assert "at all times" in answer.detail
        assert pause[0] in answer.detail


def test_a_window_that_cannot_be_read_is_an_error_that_names_it() -> None:
    with pytest.raises(UsageError, match="9-18"):
        hold(at("2025-06-02 10:00"), "9-18")


@pytest.mark.parametrize(
    ("text", "now", "until"),
    [
        # 2025-06-02 is a Monday.
        ("22:00-06:00", "2025-06-02 23:00", "2025-06-03 06:00"),
        ("22:00-06:00", "2025-06-02 05:59", "2025-06-02 06:00"),
        ("22:00-06:00", "2025-06-02 06:00", None),
        ("mon 22:00-02:00", "2025-06-03 01:00", "2025-06-03 02:00"),
        ("mon 22:00-02:00", "2025-06-02 01:00", None),
        ("sun 22:00-02:00", "2025-06-02 01:00", "2025-06-02 02:00"),
        ("mon-fri 09:00-18:00", "2025-06-07 10:00", None),
        ("sat,sun 00:00-24:00", "2025-06-07 10:00", "2025-06-09 00:00"),
        ("fri-mon 00:00-24:00", "2025-06-06 10:00", "2025-06-10 00:00"),
    ],
)
def test_weekdays_are_those_of_the_start(text: str, now: str, until: str | None) -> None:
    assert held_until([parse_window(text)], BANGKOK, at(now)) == (until and at(until))


@pytest.mark.parametrize(
    ("text", "day", "start_utc", "end_utc"),
    [
        # On 2025-03-30 Berlin goes from 02:00 to 03:00 at 01:00 UTC.
        ("02:30-04:00", "2025-03-30", "01:00", "02:00"),
        ("01:00-02:30", "2025-03-30", "00:00", "01:00"),
        ("02:00-03:00", "2025-03-30", None, None),
        # On 2025-10-26 it goes from 03:00 back to 02:00 at 01:00 UTC.
        ("02:30-04:00", "2025-10-26", "00:30", "03:00"),
        ("01:00-02:30", "2025-10-26", "23:00", "01:30"),
        ("01:00-02:00", "2025-10-26", "23:00", "01:00"),
        ("02:15-02:45", "2025-10-26", "00:15", "01:45"),
        ("01:00-03:00", "2025-10-26", "23:00", "02:00"),
    ],
)
def test_an_edge_where_the_clock_jumps(text: str, day: str, start_utc: str | None, end_utc: str | None) -> None:
    noon_before = at(day, BERLIN) - timedelta(hours=12)
    start = next_edge([parse_window(text)], BERLIN, noon_before)
    assert start is not None
    if start_utc is None or end_utc is None:
        assert start == at(day, BERLIN) + timedelta(days=1, hours=1), "the window is empty on that day"
        return
    assert start.strftime("%H:%M") == start_utc
    end = next_edge([parse_window(text)], BERLIN, start)
    assert end is not None
    assert end.strftime("%H:%M") == end_utc


def test_a_weekly_window_that_is_skipped_has_its_next_edge_a_week_later() -> None:
    saturday = at("2025-03-29 12:00", BERLIN)
    assert next_edge([parse_window("sun 02:10-02:50")], BERLIN, saturday) == at("2025-04-06 02:10", BERLIN)


def test_there_is_no_next_edge_without_windows_or_without_a_free_minute() -> None:
    now = at("2025-06-02 10:00")
    assert next_edge([], BANGKOK, now) is None
    assert held_until([], BANGKOK, now) is None
    assert next_edge([parse_window("00:00-24:00")], BANGKOK, now) is None
    assert held_until([parse_window("00:00-24:00")], BANGKOK, now) == FOREVER


# A zone, and a day near which its clock jumps.
PLACES = (
    ("Europe/Berlin", date(2025, 3, 30)),
    ("Europe/Berlin", date(2025, 10, 26)),
    ("America/New_York", date(2025, 3, 9)),
    ("America/New_York", date(2025, 11, 2)),
    ("Asia/Bangkok", date(2025, 6, 2)),
    ("Australia/Lord_Howe", date(2025, 10, 5)),  # by half an hour
    ("Australia/Lord_Howe", date(2025, 4, 6)),
    ("America/Havana", date(2025, 3, 9)),  # at midnight
    ("America/Havana", date(2025, 11, 2)),
    ("Pacific/Apia", date(2011, 12, 30)),  # a whole day that never was
)
DAYS_BEFORE, DAYS_AFTER = 6, 24


@cache
def clock_of(zone: str, day: date) -> tuple[datetime, list[datetime]]:
    """Say what the clock shows at each minute from the first on."""
    first = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=DAYS_BEFORE)
    minutes = (DAYS_BEFORE + DAYS_AFTER) * 1440
    info = ZoneInfo(zone)
    return first, [(first + n * MINUTE).astimezone(info).replace(tzinfo=None, fold=0) for n in range(minutes)]


def held_minutes(windows: list[Window], zone: str, day: date) -> list[bool]:
    """Apply the rules minute by minute.

    A start is the first minute at which the clock shows it or more; an end the last minute at which the clock shows it,
    or, where it never does, the first minute after the last that shows less.
    """
    _, shown = clock_of(zone, day)
    held = [False] * len(shown)
    for window in windows:
        for offset in range(-DAYS_BEFORE - 1, DAYS_AFTER):
            start_day = day + timedelta(days=offset)
            if start_day.weekday() not in window.weekdays:
                continue
            start = datetime(start_day.year, start_day.month, start_day.day) + window.start_minute * MINUTE
            end = datetime(start_day.year, start_day.month, start_day.day) + window.end_minute * MINUTE
            if window.end_minute < window.start_minute:
                end += timedelta(days=1)
            guess = (offset + DAYS_BEFORE) * 1440 + window.start_minute
            nearby = range(max(0, guess - 2 * 1440), min(len(shown), guess + 4 * 1440))
            begin = next((n for n in nearby if shown[n] >= start), None)
            exact = [n for n in nearby if shown[n] == end]
            less = [n for n in nearby if shown[n] < end]
            finish = exact[-1] if exact else less[-1] + 1 if less else 0
            for n in range(begin if begin is not None else finish, finish):
                held[n] = True
    return held


@st.composite
def windows_strategy(draw: st.DrawFn) -> Window:
    # Edges crowd around the hours at which clocks jump.
    edge = st.one_of(st.integers(0, 1440), st.sampled_from([0, 30, 60, 90, 119, 120, 121, 150, 180, 181, 1380, 1440]))
    start = draw(edge.filter(lambda minute: minute < 1440))
    end = draw(edge.filter(lambda minute: minute != start))
    weekdays = draw(st.one_of(st.just(frozenset(range(7))), st.frozensets(st.integers(0, 6), min_size=1)))
    return Window(weekdays, start, end)


@settings(max_examples=80, deadline=None)
@example([Window(frozenset(range(7)), 180, 120)], PLACES[0], 5 * 1440, 0)
@example([Window(frozenset(range(7)), 120, 180)], PLACES[1], 6 * 1440, 30)
@example([Window(frozenset({3}), 1320, 360)], PLACES[9], 6 * 1440 - 30, 0)
@given(
    st.lists(windows_strategy(), min_size=1, max_size=3),
    st.sampled_from(PLACES),
    st.integers(3 * 1440, 8 * 1440),
    st.integers(0, 59),
)
def test_windows_agree_with_a_walk_along_the_clock(
    windows: list[Window], place: tuple[str, date], minute: int, second: int
) -> None:
    first, _ = clock_of(*place)
    zone = ZoneInfo(place[0])
    held = held_minutes(windows, *place)
    now = first + minute * MINUTE + timedelta(seconds=second)

    flip = next((n for n in range(minute + 1, len(held)) if held[n] != held[minute]), None)
    # The oracle sees no window that starts beyond its last day.
    assume(flip is None or flip < len(held) - 3 * 1440)
    expected_edge = None if flip is None else first + flip * MINUTE

    until = held_until(windows, zone, now)
    if held[minute]:
        assert until == (expected_edge or FOREVER)
    else:
        assert until is None
    assert next_edge(windows, zone, now) == expected_edge


def test_the_oracle_sees_both_jumps() -> None:
    _, spring = clock_of("Europe/Berlin", date(2025, 3, 30))
    _, autumn = clock_of("Europe/Berlin", date(2025, 10, 26))
    assert datetime(2025, 3, 30, 2, 30) not in spring
    assert autumn.count(datetime(2025, 10, 26, 2, 30)) == 2
