"""Formats output: times, tables, JSON and the lines on stderr.

A pipe gets no colours and nothing is folded; in a terminal lines and columns are folded between words, never cut.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from gpuqueue.domain.errors import UsageError
from gpuqueue.domain.units import parse_duration

__all__ = [
    "error_line",
    "folded",
    "heading",
    "in_terminal",
    "note",
    "parse_moment",
    "print_json",
    "print_table",
    "say",
    "state_style",
]

STATE_COLORS = {"running": "cyan", "completed": "green", "discarded": "red", "cancelled": "yellow", "retryable": "yellow"}
GAP = 2  # between two columns
LEAST_PROSE = 24  # narrower, prose is easier to read below its row
MOMENT_EXAMPLES = '"30m", "18:00", "2030-01-31T18:00", "2030-01-31T18:00+07:00"'


def parse_moment(text: str, *, now: datetime, what: str) -> datetime:
    """Parse a time: a duration from now, a time of day (the next one), or ISO 8601; without a zone it is local.

    Raises: UsageError naming `what`.
    """
    wrong = UsageError(f"{what} must be a duration or a time, not {text!r}. Use for example {MOMENT_EXAMPLES}")
    stripped = text.strip()
    if len(stripped) == 5 and stripped[2] == ":":
        try:
            at = datetime.strptime(stripped, "%H:%M").time()
        except ValueError:
            raise wrong from None
        today = now.astimezone().replace(tzinfo=None)
        local = datetime.combine(today.date(), at)
        return (local if local > today else local + timedelta(days=1)).astimezone().astimezone(UTC)
    try:
        return datetime.fromisoformat(stripped).astimezone().astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    try:
        return now + timedelta(seconds=parse_duration(stripped, what=what))
    except UsageError:
        raise wrong from None


def print_json(data: Any) -> None:
    """Print JSON on stdout, indented."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """Print a line for the person on stderr, where it does not mix with results."""
    click.echo(text, err=True)


def error_line(text: str) -> None:
    """Print an error on stderr."""
    click.echo(
        f"{click.style('Error:', fg='red', bold=True)} {text}", err=True, color=False if os.environ.get("NO_COLOR") else None
    )


def in_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def terminal_width() -> int:
    return shutil.get_terminal_size().columns


def state_style(state: str) -> str:
    """Colour a state's name; without a terminal click removes the colour again."""
    color = STATE_COLORS.get(state)
    return click.style(state, fg=color) if color else state


def heading(text: str) -> str:
    """Format a heading, with an empty line before it."""
    return "\n" + click.style(text, bold=True)


def folded(text: str, width: int, *, hang: int = 0) -> str:
    """Fold a line between words; lines after the first begin at the column `hang`, and a long word stays whole."""
    lines, line = [], ""
    for space, word in re.findall(r"(\s*)(\S+)", text):
        if line.strip() and _cells(line + space + word) > width:
            lines.append(line)
            line = " " * hang + word
        else:
            line += space + word
    return "\n".join([*lines, line])


def say(text: str, *, hang: int | None = None, err: bool = False) -> None:
    """Print a line for people, folded between words in a terminal. Not for text to be copied whole, such as a command."""
    if sys.stderr.isatty() if err else in_terminal():
        further_in = len(text) - len(text.lstrip()) + 2
        text = folded(text, terminal_width(), hang=further_in if hang is None else hang)
    click.echo(text, err=err)


def _cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    plain = click.unstyle(text)
    if plain.isascii():
        return len(plain)
    from rich.cells import cell_len  # a letter of some languages takes two columns, an accent none

    return cell_len(plain)


def print_table(columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings: {heading: "left", "right", or "prose" for a last one with long texts}.

    A terminal folds cells between words. If it is too narrow for that, the prose goes below its row; if it is still too narrow,
    each row becomes separate lines. Nothing is ever cut.
    """
    cells = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    sides = list(columns.values())
    table = [list(columns), *cells]
    if not in_terminal():
        _print_rows(table, sides, [max(map(_cells, column)) for column in zip(*table, strict=True)])
        return
    room = terminal_width()
    natural = [max(map(_cells, column)) for column in zip(*table, strict=True)]
    if sides[-1] == "prose":
        left = room - sum(natural[:-1]) - GAP * (len(natural) - 1)
        if left >= min(natural[-1], max([LEAST_PROSE, *(_cells(word) for row in table for word in row[-1].split())])):
            _print_rows(table, sides, [*natural[:-1], left])
            return
        short, prose = [row[:-1] for row in table], [row[-1] for row in table]
    else:
        short, prose = table, [""] * len(table)
    widths = _widths(short, room)
    for number, row in enumerate(cells if widths is None else table):
        if widths is None:
            click.echo(folded("  ".join(state_style(cell) for cell in row if cell), room, hang=_cells(row[0]) + GAP))
            continue
        _print_rows([short[number]], sides, widths, headed=number == 0)
        if prose[number] and number > 0:
            margin = " " * (widths[0] + GAP)
            click.echo(folded(margin + prose[number], room, hang=len(margin)))


def _widths(table: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Choose the columns' widths so that no word is broken and few cells are folded; None if there is not enough room."""
    natural = [max(map(_cells, column)) for column in zip(*table, strict=True)]
    widths = [max(_cells(word) for cell in column for word in cell.split() or [""]) for column in zip(*table, strict=True)]
    left = room - sum(widths) - GAP * (len(widths) - 1)
    if left < 0:
        return None
    for position in sorted(range(len(widths)), key=lambda position: natural[position] - widths[position]):
        taken = min(left, natural[position] - widths[position])
        widths[position] += taken
        left -= taken
    return widths


def _print_rows(table: Sequence[Sequence[str]], sides: Sequence[str], widths: Sequence[int], *, headed: bool = True) -> None:
    for number, row in enumerate(table):
        columns = [folded(cell, width).split("\n") for cell, width in zip(row, widths, strict=True)]
        for line in itertools.zip_longest(*columns, fillvalue=""):
            parts = []
            for part, side, width in zip(line, sides, widths, strict=False):
                padding = " " * (width - _cells(part))
                styled = click.style(part, bold=True) if headed and number == 0 and part else state_style(part)
                parts.append(padding + styled if side == "right" else styled + padding)
            click.echo((" " * GAP).join(parts).rstrip())
