"""Checks and merges a job's options; stores nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypedDict

from gpuqueue.domain.errors import UsageError, did_you_mean
from gpuqueue.domain.names import is_name
from gpuqueue.domain.numbers import whole_number
from gpuqueue.domain.safe_text import safe_repr
from gpuqueue.domain.settings import HIGHEST_COUNT, HIGHEST_PRIORITY, LOWEST_PRIORITY
from gpuqueue.domain.units import Duration, parse_duration, parse_size, parse_time_us

DEFAULT_QUEUE = "default"


class Options(TypedDict, total=False):
    """A job's options; None is the same as leaving one out.

    `delay`, `timeout`, `expires_in`: "90s", "5m", seconds or a timedelta. `at`: an aware datetime. `priority`: higher runs
    first. `timeout` limits an attempt. `expires_in`: a job that is still waiting then is discarded. `vram`: the device memory
    that it needs, "2GB", instead of the configured or measured size. `device`: the name or label of the device to run on.
    `fallback`: models to use, in this order, when the job's own is missing or fits no device.
    `tags`: strings to find it by.
    """

    delay: Duration | None
    at: datetime | None
    priority: int | None
    queue: str | None
    max_attempts: int | None
    timeout: Duration | None
    expires_in: Duration | None
    vram: str | int | None
    device: str | None
    fallback: Iterable[str]
    tags: Iterable[str]


class EnqueueOptions(Options, total=False):
    """The options, and a `connection` to the queue's own file to enqueue in its transaction: a SQLAlchemy Connection or Session
    (or its async kind), or Django's connection.
    """

    connection: Any


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Checked options; None means the task's or the queue's default."""

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    delay_s: float | None = None
    at_us: int | None = None
    expires_in_s: float | None = None
    vram_bytes: int | None = None
    device: str | None = None
    fallback: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    connection: Any = None


def read_options(given: Mapping[str, Any]) -> JobOptions:
    """Check and convert options, named as in `EnqueueOptions`. Raises: UsageError naming the option."""
    known = EnqueueOptions.__annotations__
    for name in given:
        if name not in known:
            raise UsageError(f"unknown job option {name!r}{did_you_mean(name, known)}. Options: {', '.join(known)}")
    asked: Options = {name: value for name, value in given.items() if value is not None}  # type: ignore[assignment]
    if "delay" in asked and "at" in asked:
        raise UsageError("set delay or at, not both")
    timeout_s = _duration(asked, "timeout")
    if timeout_s == 0:
        raise UsageError("timeout must be greater than 0")
    return JobOptions(
        queue=_text(asked, "queue"),
        priority=_whole_number(asked, "priority", LOWEST_PRIORITY, HIGHEST_PRIORITY),
        max_attempts=_whole_number(asked, "max_attempts", 1, HIGHEST_COUNT),
        timeout_s=timeout_s,
        delay_s=_duration(asked, "delay"),
        at_us=parse_time_us(asked["at"], what="at") if "at" in asked else None,
        expires_in_s=_duration(asked, "expires_in"),
        vram_bytes=_size(asked, "vram"),
        device=_text(asked, "device"),
        fallback=read_texts("fallback", asked.get("fallback", ())),
        tags=read_texts("tags", asked.get("tags", ())),
        connection=given.get("connection"),
    )


def merged(asked: JobOptions, defaults: JobOptions) -> JobOptions:
    """Return `asked` with the defaults for options it leaves out; delay and at replace each other."""
    chosen = {name: getattr(asked, name) for name in JobOptions.__slots__ if getattr(asked, name) not in (None, ())}
    if "delay_s" in chosen or "at_us" in chosen:
        defaults = replace(defaults, delay_s=None, at_us=None)
    return replace(defaults, **chosen)


def _duration(asked: Mapping[str, Any], name: str) -> float | None:
    return parse_duration(asked[name], what=name) if name in asked else None


def _size(asked: Mapping[str, Any], name: str) -> int | None:
    if name not in asked:
        return None
    size = parse_size(asked[name], what=name)
    if not size:
        raise UsageError(f"{name} must be greater than 0; leave it out if the job needs no device memory")
    return size


def _text(asked: Mapping[str, Any], name: str) -> str | None:
    value = asked.get(name)
    if value is not None and not is_name(value):
        raise UsageError(f"{name} must be a non-empty string, not {safe_repr(value)}")
    return value


def _whole_number(asked: Mapping[str, Any], name: str, lowest: int, highest: int) -> int | None:
    value = asked.get(name)
    return None if value is None else whole_number(value, what=name, minimum=lowest, maximum=highest)


def read_texts(name: str, given: Any) -> tuple[str, ...]:
    """Check a list of strings, any iterable but one string. Raises: UsageError naming it."""
    found: tuple[Any, ...] = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (None,)
    if not all(map(is_name, found)):
        raise UsageError(f"{name} must be a list of non-empty strings, not {safe_repr(given)}")
    return found


def read_flag(name: str, given: Any) -> bool:
    """Check a True or False. Raises: UsageError naming it."""
    if not isinstance(given, bool):
        raise UsageError(f"{name} must be True or False, not {safe_repr(given)}")
    return given
