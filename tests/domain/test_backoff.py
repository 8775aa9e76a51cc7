"""How long a failed job waits: the kinds of backoff, their cap and jitter, and what is refused."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpuqueue import GPUQueue, UsageError, backoff
from gpuqueue.domain.verdicts import Discard, Retry, Snooze


def waits(kind, attempts=(1, 2, 3, 4), chance=0.0):
    return [kind.wait_s(attempt, chance) for attempt in attempts]


def test_each_kind_grows_in_its_own_way():
    assert waits(backoff.exponential("10s")) == [10, 20, 40, 80]
    assert waits(backoff.exponential(1, factor=3)) == [1, 3, 9, 27]
    assert waits(backoff.polynomial("2s")) == [2, 8, 18, 32]
    assert waits(backoff.fixed("90s")) == [90, 90, 90, 90]
    assert waits(backoff.custom(lambda attempt: timedelta(minutes=attempt))) == [60, 120, 180, 240]


@pytest.mark.parametrize("kind", [backoff.exponential, backoff.polynomial])
def test_no_wait_is_longer_than_the_cap_however_many_attempts_there_were(kind):
    assert waits(kind("1s", cap="30s"), [1, 50, 10**6]) == [1, 30, 30]


def test_the_cap_holds_for_what_a_function_says():
    assert waits(backoff.custom(lambda attempt: f"{attempt}h", cap="90m"), [1, 2]) == [3600, 5400]


def test_jitter_takes_away_a_part_of_the_wait_and_adds_none():
    kind = backoff.exponential("100s", cap="100s", jitter=0.3)
    assert waits(kind, [1], chance=1.0) == [70]
    assert waits(kind, [1], chance=0.5) == [85]
    assert waits(kind, [1], chance=0.0) == [100]
    assert waits(backoff.fixed("10s", jitter=0), [1], chance=1.0) == [10]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: backoff.exponential("5 parsecs"), "first"),
        (lambda: backoff.exponential(factor=0.5), "factor"),
        (lambda: backoff.exponential(cap="never"), "cap"),
        (lambda: backoff.exponential(jitter=2), "jitter"),
        (lambda: backoff.polynomial(power=-1), "power"),
        (lambda: backoff.fixed("soon"), "wait"),
        (lambda: backoff.read_backoff("linear"), "'linear'"),
        (lambda: backoff.read_backoff(5), "not 5"),
        (lambda: backoff.custom(lambda _attempt: "soon").wait_s(1, 0), "backoff must be a duration, not 'soon'"),
    ],
)
def test_a_wrong_setting_is_named(make, said):
    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"retry_on": "ConnectionError"}, "retry_on must be one or more exception classes"),
        ({"discard_on": [ValueError, 5]}, "discard_on must be one or more exception classes, such as ConnectionError, not 5"),
        ({"backoff": "linear"}, "backoff must be"),
        ({"qeue": "mail"}, "did you mean 'queue'"),
        ({"isolated": True}, "unknown task option 'isolated' .did you mean 'isolate'.*retry_on"),
    ],
)
def test_a_wrong_setting_of_a_task_is_named(tmp_path, settings, said):
    with pytest.raises(UsageError, match=said):
        GPUQueue(tmp_path / "jobs.db").task(**settings)(lambda: None)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Snooze(), "needs a time"),
        (lambda: Snooze("soon"), "Snooze's after"),
        (lambda: Retry("5m", at="2030-01-01"), "not both"),
        (lambda: Retry(at="2030-01-01"), "aware datetime"),
    ],
)
def test_a_wrong_verdict_says_so_where_it_is_raised(make, said):
    with pytest.raises(UsageError, match=said):
        make()


def test_verdicts_are_equal_when_they_say_the_same():
    assert Retry("5m") == Retry(300)
    assert Retry("5m") != Snooze("5m")
    assert Discard("no", code="x") != Discard("no")
    assert str(Discard("no")) == "no"
