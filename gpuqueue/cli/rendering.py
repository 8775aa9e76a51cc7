"""Owns how things look: times, tables, JSON and the lines on stderr; reads nothing of the queue.

In a pipe there is no colour and nothing is wrapped or cut; in a terminal the wide columns of a table are folded.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import click

from gpuqueue.errors import UsageError
from gpuqueue.units import format_duration, parse_duration

__all__ = [
    "clock",
    "error_line",
    "in_terminal",
    "iso",
    "note",
    "parse_moment",
    "print_json",
    "print_table",
    "since",
    "state_style",
    "until",
]

STATE_COLORS = {"running": "cyan", "completed": "green", "discarded": "red", "cancelled": "yellow", "retryable": "yellow"}
LEAST_FOLDED = 16  # a wider column may be folded to this width
MOMENT_EXAMPLES = '"30m", "18:00", "2030-01-31T18:00", "2030-01-31T18:00+07:00"'


def iso(moment: datetime | None) -> str | None:
    """Write a moment for machines: ISO 8601 in UTC, always with milliseconds."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(moment: datetime, *, now: datetime) -> str:
    """Write a moment for people, in this machine's time zone: `18:00 UTC`, and with the date unless it is today."""
    local = moment.astimezone()
    today = now.astimezone().date()
    seconds = f":{local.second:02d}" if abs(moment - now) < timedelta(minutes=10) else ""
    time_ = f"{local:%H:%M}{seconds} {local:%Z}"
    if local.date() == today:
        return time_
    if local.date() == today + timedelta(days=1) and local > now:
        return f"tomorrow {time_}"
    return f"{local:%Y-%m-%d} {time_}"


def until(moment: datetime | None, *, now: datetime) -> str:
    """Word until when: ` until 18:00 UTC (2h 5m from now)`, or nothing."""
    if moment is None:
        return ""
    left_s = (moment - now).total_seconds()
    return f" until {clock(moment, now=now)}" + (f" ({format_duration(left_s)} from now)" if left_s > 0 else "")


def since(moment: datetime, *, now: datetime) -> str:
    """Word how long ago: `2m ago`."""
    return f"{format_duration(max(0.0, (now - moment).total_seconds()))} ago"


def parse_moment(text: str, *, now: datetime, what: str) -> datetime:
    """Read a moment: a duration from now, a time of day (the next one), or ISO 8601; without a zone it is local.

    Raises: UsageError naming `what`.
    """
    wrong = UsageError(f"{what} is {text!r}: that is neither a duration nor a moment. Right: {MOMENT_EXAMPLES}")
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
    """Say whether stdout is a terminal."""
    return sys.stdout.isatty()


def terminal_width() -> int:
    return shutil.get_terminal_size().columns


def state_style(state: str) -> str:
    """Colour a state's name; without a terminal click takes the colour out again."""
    color = STATE_COLORS.get(state)
    return click.style(state, fg=color) if color else state


def print_table(columns: Mapping[str, str], rows: Sequence[Sequence[str]], *, indent: int = 0) -> None:
    """Print rows under headings: {heading: "left" or "right"}.

    A terminal folds wide columns; one too narrow even so gets each row as a line, which loses nothing.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if not in_terminal():
        _print_plain(columns, cells, indent)
        return
    widths = [max(map(len, column)) for column in zip(list(columns), *cells, strict=True)]
    if indent + sum(min(width, LEAST_FOLDED) + 2 for width in widths) - 2 > terminal_width():
        for row in cells:
            click.echo(" " * indent + "  ".join(state_style(cell) for cell in row if cell))
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for (heading, side), width in zip(columns.items(), widths, strict=True):
        justify: Literal["left", "right"] = "right" if side == "right" else "left"
        table.add_column(heading, justify=justify, no_wrap=width <= LEAST_FOLDED, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=STATE_COLORS.get(cell, "")) for cell in row))
    Console(no_color=bool(os.environ.get("NO_COLOR")) or None, highlight=False).print(Padding(table, (0, 0, 0, indent)))


def _print_plain(columns: Mapping[str, str], rows: Sequence[Sequence[str]], indent: int) -> None:
    table = [[" ".join(cell.split()) for cell in row] for row in (list(columns), *rows)]
    widths = [max(len(row[position]) for row in table) for position in range(len(columns))]
    for row in table:
        parts = [
            cell.rjust(width) if side == "right" else cell.ljust(width)
            for cell, width, side in zip(row, widths, columns.values(), strict=True)
        ]
        click.echo(" " * indent + "  ".join(parts).rstrip())
