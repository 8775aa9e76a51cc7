"""Defines the verdicts on an attempt, raised by a task or returned by a policy, and a task's rules for its failures.

raise Retry(after="5m")                     # spends the attempt
raise Snooze("5m", reason="still closed")   # does not spend it
raise Discard("the order was cancelled")    # final
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gpuqueue.domain.backoff import Backoff, exponential, read_backoff
from gpuqueue.domain.errors import ExecutionError, UsageError, describe
from gpuqueue.domain.safe_text import class_name, safe_repr, safe_text
from gpuqueue.domain.units import Duration, parse_duration, parse_time_us


class Verdict(Exception):
    """What happens after an attempt; not an error, although a task raises it."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = Exception.__hash__


class Retry(Verdict):
    """Try again, spending the attempt: `after` a duration, `at` a time, or by the task's backoff; the last attempt discards."""

    def __init__(self, after: Duration | None = None, *, at: datetime | None = None, reason: str = "") -> None:
        super().__init__(reason)
        self.after_s, self.at = _time(after, at, "Retry", "at")
        self.reason = reason

    def due_at(self, now: datetime) -> datetime | None:
        """Return when to try again, None to use the task's backoff."""
        return _due_at(self.after_s, self.at, now)


class Snooze(Verdict):
    """Postpone the job without spending the attempt; the wait ends early if the backend `waiting_for` is available again."""

    def __init__(
        self,
        after: Duration | None = None,
        *,
        until: datetime | None = None,
        reason: str = "",
        waiting_for: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.after_s, self.until = _time(after, until, "Snooze", "until")
        if self.after_s is None and self.until is None:
            raise UsageError('Snooze needs a time: Snooze("5m") or Snooze(until=…)')
        self.reason = reason
        self.waiting_for = waiting_for

    def due_at(self, now: datetime) -> datetime:
        """Return when the job may start again."""
        return _due_at(self.after_s, self.until, now) or now


class Discard(Verdict):
    """End the job as discarded, even if attempts are left."""

    def __init__(self, reason: str = "", *, code: str = "discarded") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


DEFAULT_BACKOFF = exponential()
LONGEST_CODE = 100


def verdict_data(verdict: Verdict) -> dict[str, Any]:
    """Convert a verdict to JSON-able data: its own parts, whatever a task put into them, and not those of a subclass."""
    kind = next(kind for kind in _PARTS if isinstance(verdict, kind))
    return {"verdict": kind.__name__, **{name: _part(getattr(verdict, name, None)) for name in _PARTS[kind]}}


def _part(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if value is None or type(value) in (str, int, float):
        return value
    return safe_text(value)


def verdict_of(data: Mapping[str, Any]) -> Verdict:
    """Convert the data of `verdict_data` back to a verdict."""
    values = dict(data)
    kind = next(kind for kind in _PARTS if kind.__name__ == values["verdict"])
    del values["verdict"]
    if "after_s" in values:
        values["after"] = values.pop("after_s")
    for key in ("at", "until"):
        if values.get(key) is not None:
            values[key] = datetime.fromisoformat(values[key])
    return kind(**values)


_PARTS: Mapping[type[Verdict], tuple[str, ...]] = {
    Retry: ("after_s", "at", "reason"),
    Snooze: ("after_s", "until", "reason", "waiting_for"),
    Discard: ("reason", "code"),
}
Errors = tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class RetryRules:
    """A task's rules for failures: `retry_on` None retries every error, `discard_on` errors are final; both cover subclasses."""

    retry_on: Errors | None = None
    discard_on: Errors = ()
    backoff: Backoff = DEFAULT_BACKOFF

    def is_final(self, error: BaseException) -> bool:
        """Return whether the rules rule out another attempt after this error."""
        if covers(self.discard_on, error):
            return True
        return self.retry_on is not None and not isinstance(error, Retry) and not covers(self.retry_on, error)


DEFAULT_RULES = RetryRules()


def read_rules(retry_on: Any, discard_on: Any, backoff: Any) -> RetryRules:
    """Check a task's rules: one or more exception classes, and a backoff. Raises: UsageError naming the setting."""
    return RetryRules(
        None if retry_on is None else _errors(retry_on, "retry_on"),
        () if discard_on is None else _errors(discard_on, "discard_on"),
        DEFAULT_BACKOFF if backoff is None else read_backoff(backoff),
    )


def covers(kinds: Errors, error: BaseException) -> bool:
    """Return whether the error is one of these classes; one from another process lists its classes in `kinds`."""
    named: frozenset[str] = getattr(error, "kinds", frozenset())
    return isinstance(error, kinds) or any(f"{kind.__module__}.{kind.__qualname__}" in named for kind in kinds)


def failure(error: BaseException) -> tuple[str, str]:
    """Return the parts of an error that are stored with a job: its code and its message. Never raises."""
    if isinstance(error, Verdict):
        return "failed", safe_text(error) or f"the task raised {class_name(error)}"
    if isinstance(error, ExecutionError):
        return safe_text(error.code, LONGEST_CODE), safe_text(error)
    return "failed", describe(error)


def _errors(given: Any, name: str) -> Errors:
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | type) else (given,)
    for item in found:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise UsageError(f"{name} must be one or more exception classes, such as ConnectionError, not {safe_repr(item)}")
    return found


def _time(after: Duration | None, moment: datetime | None, verdict: str, name: str) -> tuple[float | None, datetime | None]:
    if after is not None and moment is not None:
        raise UsageError(f"{verdict}: give after or {name}, not both")
    if moment is not None:
        parse_time_us(moment, what=f"{verdict}'s {name}")
    return None if after is None else parse_duration(after, what=f"{verdict}'s after"), moment


def _due_at(after_s: float | None, moment: datetime | None, now: datetime) -> datetime | None:
    return moment if after_s is None else now + timedelta(seconds=after_s)
