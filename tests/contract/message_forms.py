"""Owns what a message is: its words, what is filled in, its alternatives, and which printed lines it can be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Hole:
    """What is only known when the message is made."""

    name: str


@dataclass(frozen=True)
class Choice:
    """One of several texts."""

    texts: tuple[tuple[Part, ...], ...]


Part = str | Hole | Choice
Parts = tuple[Part, ...]


def shown(parts: Parts) -> str:
    return "".join(part if isinstance(part, str) else _shown(part) for part in parts)


def _shown(part: Hole | Choice) -> str:
    if isinstance(part, Hole):
        return f"{{{part.name}}}"
    return f"⟨{'|'.join(map(shown, part.texts))}⟩"


def words(parts: Parts) -> str:
    """Return the words that a message has for certain, or may have, without what is filled in."""
    said = (
        part if isinstance(part, str) else " ".join(map(words, part.texts)) if isinstance(part, Choice) else "" for part in parts
    )
    return "".join(said)


def letters(parts: Parts) -> int:
    """Count the letters that are not filled in."""
    return len(re.findall(r"[^\W\d_]", words(parts)))


MOST_FORMS = 64


def forms(parts: Parts) -> list[Parts]:
    """Return every form that a message's alternatives give it; those beyond MOST_FORMS stay as they are."""
    found: list[Parts] = [()]
    for part in parts:
        texts = [form for text in part.texts for form in forms(text)] if isinstance(part, Choice) else [(part,)]
        if len(found) * len(texts) > MOST_FORMS:
            texts = [(part,)]
        found = [(*before, *text) for before in found for text in texts]
    return found


def pattern(parts: Parts) -> str:
    return "".join(
        r"\s+".join(map(re.escape, re.split(r"\s+", part)))
        if isinstance(part, str)
        else ".*"
        if isinstance(part, Hole)
        else f"(?:{'|'.join(map(pattern, part.texts))})"
        for part in parts
    )


@dataclass(frozen=True)
class Message:
    """A message, its kind, the name of its error, hold or event, and the file that says it."""

    kind: str
    name: str
    path: str
    parts: Parts = field(repr=False)

    @property
    def text(self) -> str:
        return shown(self.parts)

    @cached_property
    def regex(self) -> re.Pattern[str]:
        said = "|".join(
            re.sub(r"^\\s\+|\\s\+$", "", pattern(form)) for form in forms(self.parts) if letters(form) >= LEAST_LETTERS
        )
        return re.compile(rf"\s*(?:{said or '(?!)'}){UNTIL if self.kind == 'hold' else ''}\s*", re.DOTALL)


LEAST_LETTERS = 5  # a form with fewer is met by almost everything
UNTIL = r"(?: until .*)?"  # a hold with an end is printed with it
BEFORE = re.compile(  # what a message is printed behind: its sort, the time in a log, its subject, the reason of a hold
    r"\s*(?:(?:Error|Warning|error|warning|note): |\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ |(?:ok|warn|problem)\s+[^:]*: |→ |- \w+: "
    r"|job \d+: |queue \S+: |argument \S+: |environment variable \S+: |\S+\.toml: \S+: )"
)
