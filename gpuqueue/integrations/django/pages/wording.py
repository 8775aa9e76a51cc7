"""Formats times, texts and advice for the admin pages; reads nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpuqueue.domain.answers import Hold
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.moments import clock, iso, since, until
from gpuqueue.domain.units import format_duration

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

__all__ = ["Moment", "Text", "as_json", "held", "manage", "next_step"]

SHOWN_CHARACTERS = 20_000  # of one text, unless all is asked for
NOTHING = "–"
# A list's numbers, one per line: a string in JSON cannot contain a line break.
MANY_NUMBERS = re.compile(r"\[\n(?: *[-+.\deE]+,\n){19,} *[-+.\deE]+\n *\]")
FIRST_NUMBERS = 5


@dataclass(frozen=True, slots=True)
class Moment:
    """A time for a page: when, how long ago or from now, and exactly."""

    at: datetime
    now: datetime

    @property
    def clock(self) -> str:
        return clock(self.at, now=self.now)

    @property
    def distance(self) -> str:
        if self.at > self.now:
            return f"{format_duration((self.at - self.now).total_seconds())} from now"
        return since(self.at, now=self.now)

    @property
    def exact(self) -> str:
        return iso(self.at) or ""

    def __str__(self) -> str:
        return f"{self.clock} ({self.distance})"


@dataclass(frozen=True, slots=True)
class Text:
    """A job's text, cut to fit a page; `left_out_count` characters are left out."""

    shown: str
    left_out_count: int = 0

    @classmethod
    def of(cls, text: str, *, whole: bool = False) -> Text:
        # Half of a surrogate pair is valid JSON, but cannot be sent.
        sendable = text.encode("utf-8", "backslashreplace").decode()
        if whole or len(sendable) <= SHOWN_CHARACTERS:
            return cls(sendable)
        return cls(sendable[:SHOWN_CHARACTERS], len(sendable) - SHOWN_CHARACTERS)

    def __str__(self) -> str:
        return self.shown


def as_json(value: Any, *, whole: bool = False) -> Text:
    """Write a value for people; unless `whole`, only the first numbers of a long list are kept."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    brief = text if whole else MANY_NUMBERS.sub(_first_numbers, text)
    shown = Text.of(brief, whole=whole)
    return Text(shown.shown, shown.left_out_count + len(text) - len(brief))


def _first_numbers(found: re.Match[str]) -> str:
    numbers = found[0].strip("[]").split(",")
    first = ", ".join(number.strip() for number in numbers[:FIRST_NUMBERS])
    return f"[{first}, … {len(numbers) - FIRST_NUMBERS} more numbers]"


def held(hold: Hold, *, now: datetime) -> str:
    """Describe what holds a queue, and until when."""
    return f"{hold.detail}{until(hold.until, now=now)}"


def manage(gq: DjangoQueue, words: str) -> str:
    """Return a gpuqueue command for this queue."""
    from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS

    other = "" if gq.alias == DEFAULT_ALIAS else f"--backend {gq.alias} "
    return f"python manage.py gpuqueue {other}{words}"


def next_step(gq: DjangoQueue, explanation: Explanation) -> str:
    """Return an explanation's advice as a command to type; "" if the pages have a button for it."""
    advice = explanation.advice
    if advice.startswith(("gpuqueue retry ", "gpuqueue resume ")):
        return ""
    return manage(gq, advice.removeprefix("gpuqueue ")) if advice.startswith("gpuqueue ") else advice
