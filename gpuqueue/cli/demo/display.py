"""Displays the demo: live in a terminal, as lines elsewhere, silent for --json."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gpuqueue.cli.demo.evidence import Check
from gpuqueue.cli.demo.recorder import QUEUES, Sample
from gpuqueue.domain.answers import Hold
from gpuqueue.domain.units import format_size
from gpuqueue.domain.view import DeviceView

LINE_COUNT = 9
BAR_WIDTH = 40
MARKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("–", "yellow")}


class Display:
    """Shows a run. In a terminal, one picture that stays in place; elsewhere, a line for each event."""

    def __init__(self, console: Console, *, title: str, quiet: bool) -> None:
        self._console = console
        self._title = title
        self._quiet = quiet
        self._is_live = console.is_terminal and not quiet
        self._lines: deque[tuple[datetime, str]] = deque(maxlen=LINE_COUNT)
        self._act = ""
        self._sample: Sample | None = None
        self._began_s = time.monotonic()
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._is_live:
            self._live = Live(console=self._console, auto_refresh=False, transient=True, get_renderable=self._picture)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, *lines: str) -> None:
        """Print lines that stay."""
        if not self._quiet:
            for line in lines:
                self._console.print(line, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def act(self, what: str) -> None:
        """Start an act."""
        self._act = what
        if self._is_live:
            self._refresh()
        else:
            self.say(f"{self._elapsed_s():5.1f} s  — {what} —")

    def line(self, at: datetime, text: str) -> None:
        """Show one event."""
        with self._lock:
            self._lines.append((at, text))
        if not self._is_live:
            self.say(f"{self._elapsed_s():5.1f} s  {text}")

    def sample(self, sample: Sample) -> None:
        """Draw the current state."""
        with self._lock:
            self._sample = sample
        if self._is_live:
            self._refresh()

    def checklist(self, checks: Sequence[Check], took_s: float, *, clock: str) -> None:
        """Print the verdict, each rule with its evidence; `clock` says how to read its times."""
        if self._quiet:
            return
        if self._console.is_terminal:
            self._console.print(_table(checks))
        else:
            for check in checks:
                self.say(f"{MARKS[check.passed][0]} {check.rule}", f"  {check.evidence}")
        broken_count = sum(check.passed is False for check in checks)
        verdict = f"{broken_count} of {len(checks)} rules broken" if broken_count else "No rule was broken"
        style = "bold red" if broken_count else "bold green"
        last = Text.assemble((f"{verdict}, in {took_s:.0f} s.", style), f" {clock}")
        self._console.print(last, soft_wrap=not self._console.is_terminal)

    # --- the picture ---

    def _refresh(self) -> None:
        live = self._live
        if live is not None:
            live.refresh()

    def _picture(self) -> RenderableType:
        with self._lock:
            sample, lines = self._sample, list(self._lines)
        head = Table.grid(expand=True)
        head.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
        head.add_column(justify="right", no_wrap=True, min_width=7)
        head.add_row(Text(self._title, "bold"), Text(f"{self._elapsed_s():.1f} s"))
        parts: list[RenderableType] = [head, Text(f"▸ {self._act}", "bold cyan", no_wrap=True, overflow="ellipsis"), Text()]
        if sample is not None:
            parts += [self._queues(sample), Text(), *self._cards(sample), Text()]
        parts += [
            Text(
                f"{at.astimezone():%H:%M:%S}  {text}", "dim" if text.startswith("rfa-") else "", no_wrap=True, overflow="ellipsis"
            )
            for at, text in lines
        ]
        return Group(*parts)

    def _queues(self, sample: Sample) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="dim")
        table.add_column("queue", no_wrap=True, min_width=16)
        for name in ("wait", "run", "done", "fail"):
            table.add_column(name, justify="right", no_wrap=True, min_width=4)
        table.add_column("held", no_wrap=True, overflow="ellipsis", ratio=1)
        for name in QUEUES:
            counts = sample.counts.get(name, {})
            waiting = sum(counts.get(state, 0) for state in ("available", "scheduled", "retryable"))
            numbers = [waiting, counts.get("running", 0), counts.get("completed", 0), counts.get("discarded", 0)]
            table.add_row(name, *(Text(str(number), "" if number else "dim") for number in numbers), _held(sample, name))
        return table

    def _cards(self, sample: Sample) -> list[Text]:
        device = next(iter(sample.view.devices.values()))
        total_bytes = (device.reading.total_bytes if device.reading else None) or device.settings.budget_bytes
        reserved_bytes = device.reserved_bytes
        width = max(10, min(BAR_WIDTH, self._console.width - 40))
        budget = f"budget {format_size(device.settings.budget_bytes)} of {format_size(total_bytes)}"
        bar = Text.assemble("card  ", _bar(sample.used_bytes, device, total_bytes, width), f"  {budget}")
        loaded = ", ".join(sample.residents) or "no model"
        now = f"      used {format_size(sample.used_bytes)} · reserved {format_size(reserved_bytes)} · {loaded} loaded"
        text = Text(f"{now} · {_current(device)}", no_wrap=True, overflow="ellipsis")
        bar.no_wrap, bar.overflow = True, "ellipsis"
        return [bar, text]

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began_s


def _table(checks: Sequence[Check]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        mark, style = MARKS[check.passed]
        table.add_row(Text(mark, style), Text.assemble((check.rule, "bold"), "\n", check.evidence))
    return table


def _bar(used_bytes: int, device: DeviceView, total_bytes: int, width: int) -> Text:
    used = min(width, round(width * used_bytes / total_bytes))
    reserved = min(width, round(width * device.reserved_bytes / total_bytes))
    budget = min(width - 1, round(width * device.settings.budget_bytes / total_bytes))
    bar = Text()
    for position in range(width):
        if position == budget:
            bar.append("┃", "yellow")
        elif position < used:
            bar.append("█", "cyan")
        elif position < reserved:
            bar.append("▒", "cyan")
        else:
            bar.append("·", "dim")
    return bar


def _current(device: DeviceView) -> str:
    for item in device.reservations:
        return f"{item.queue} #{item.job_id}{'' if item.running else ' is releasing its memory'}"
    return "idle"


def _held(sample: Sample, queue: str) -> Text:
    holds: tuple[Hold, ...] = sample.holds.get(queue, ())
    text = Text(no_wrap=True, overflow="ellipsis")
    for hold in holds:
        if text:
            text.append("; ")
        left_s = None if hold.until is None else max(0.0, (hold.until - sample.view.now).total_seconds())
        text.append(hold.reason, "yellow")
        if left_s is not None:
            text.append(f" {left_s:.1f} s left")
        text.append(f": {hold.detail.removeprefix(f'{hold.reason} ')}", "dim")
    return text
