"""Draws the figures of `top` as lines of exactly the terminal's size; reads and prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple, TypeVar

from rich.text import Text

from gpuqueue.cli.rendering import folded
from gpuqueue.cli.top_figures import DeviceFigures, Figures, JobFigures, QueueFigures
from gpuqueue.cli.top_words import (
    edge_sentence,
    ending,
    fitted,
    job_sentence,
    length,
    models_words,
    number,
    one_line,
    percent,
    queue_sentence,
    service_sentence,
    state_words,
    work,
)
from gpuqueue.domain.moments import since
from gpuqueue.domain.units import counted, format_size

NARROW = 60  # columns; a narrower terminal shows less of each row
WIDE = 100
LOW = 12  # lines; a lower terminal shows no details of the selection
BAR = 40  # the most columns of a device's bar
STALE_S = 10.0  # an older reading is shown as old
MOST_EXTRAS = 4  # the most lines of windows and services
STATE_STYLES = {"running": "cyan", "held": "yellow", "paused": "magenta", "no worker": "bold red", "idle": "dim", "waiting": ""}
KEYS = "Tab list  j k move  p pause  r resume  c cancel  f follow  ? help  q quit"
FEW_KEYS = "p pause r resume c cancel f follow ? q"

Focus = Literal["queues", "jobs"]
Item = TypeVar("Item")


class Signs(NamedTuple):
    """The characters that the picture is drawn with."""

    chosen: str = "▸"
    full: str = "█"
    promised: str = "▒"
    others: str = "▓"
    empty: str = "·"
    budget: str = "┃"


ASCII = Signs(">", "#", "+", "x", ".", "|")


@dataclass
class Choice:
    """The list that the keys move in, and the selection in each: by name, so it survives changes of the list."""

    focus: Focus = "queues"
    queue: str = ""
    job: int = 0

    def settle(self, figures: Figures) -> None:
        """Select the first item where the selected one is gone."""
        names = [queue.name for queue in figures.queues]
        if self.queue not in names:
            self.queue = names[0] if names else ""
        ids = [job.id for job in figures.jobs]
        if self.job not in ids:
            self.job = ids[0] if ids else 0


def picture(
    figures: Figures, choice: Choice, message: Text | None, *, width: int, height: int, signs: Signs | None = None
) -> list[Text]:
    """Draw everything as `height` lines of `width` columns; rows without room are counted."""
    page = _Page(figures, choice, width, signs or Signs())
    keys = Text(KEYS if width >= len(KEYS) else FEW_KEYS, "dim")
    most = 1 + (0 if height < LOW else 2 if width >= NARROW else 3)
    said = [keys] if message is None else told(message, width, most)
    foot = [*page.detail(most - 1)[: most - len(said)], *said]
    return framed(page.body(max(0, height - len(foot))), foot, width=width, height=height)


def told(message: Text, width: int, most: int) -> list[Text]:
    """Fold a message into at most `most` lines."""
    lines = folded(message.plain, width).split("\n")
    if len(lines) > most:
        lines[most - 1 :] = [" ".join(lines[most - 1 :])]
    return [Text(line, message.style) for line in lines]


def framed(body: Sequence[Text], foot: Sequence[Text], *, width: int, height: int) -> list[Text]:
    """Put the foot at the bottom, and cut everything to the size."""
    room = max(0, height - len(foot))
    lines = [*body[:room], *(Text() for _ in range(room - len(body))), *foot][:height]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
        line.truncate(width, overflow="ellipsis")
    return lines


class _Page:
    """The lines above the foot."""

    def __init__(self, figures: Figures, choice: Choice, width: int, signs: Signs) -> None:
        self._figures, self._choice, self._width, self._signs = figures, choice, width, signs
        self._is_narrow = width < NARROW

    def body(self, height: int) -> list[Text]:
        """Draw the head, queues, jobs, devices and what comes next; the lists share the lines that are left."""
        figures = self._figures
        cards = [line for device in figures.devices for line in self._card(device)]
        extras = self._extras()
        queues, jobs = len(figures.queues), len(figures.jobs) + bool(figures.more_running)
        gaps = 3
        # Drop the least important first: empty lines, then what comes next, then the devices after the first.
        while gaps and 1 + 2 + queues + jobs + gaps + len(cards) + len(extras) > height:
            gaps -= 1
        while extras and 1 + 2 + min(queues, 4) + min(jobs, 4) + len(cards) + len(extras) > height:
            extras.pop()
        while len(cards) > 2 and 1 + 2 + min(queues, 3) + min(jobs, 3) + len(cards) > height:
            cards[-2:] = []
        if len(cards) // 2 < len(figures.devices):
            extras.insert(0, Text(f"+ {counted(len(figures.devices) - len(cards) // 2, 'more device')}", "dim"))
        room = max(2, height - 1 - 2 - gaps - len(cards) - len(extras))
        for_queues = min(queues, max(room // 2, room - max(1, jobs)))
        for_jobs = room - for_queues
        gap = [Text()]
        return [
            self._head(),
            *gap * (gaps > 1),
            *self._queues(for_queues),
            *gap * (gaps > 0),
            *self._jobs(for_jobs),
            *gap * (gaps > 2),
            *cards,
            *extras,
        ]

    def detail(self, most: int) -> list[Text]:
        """Draw the details of the selection, in at most `most` lines."""
        figures, choice = self._figures, self._choice
        sentence = ""
        if choice.focus == "queues":
            sentence = next((queue_sentence(item, figures.now) for item in figures.queues if item.name == choice.queue), "")
        else:
            sentence = next((job_sentence(item, figures.now) for item in figures.jobs if item.id == choice.job), "")
        if most <= 0:
            return []
        lines = told(Text(one_line(sentence)), self._width, most)
        return [*lines, *(Text() for _ in range(most - len(lines)))]

    # --- parts ---

    def _head(self) -> Text:
        figures = self._figures
        count = len(figures.workers)
        workers = Text(counted(count, "worker"), "" if count else "bold red")
        local = figures.now.astimezone()
        right = Text.assemble(workers, f"  {local:%H:%M:%S}" + ("" if self._is_narrow else f" {local:%Z}"))
        title = "top" if self._is_narrow else "gpuqueue top"
        room = self._width - right.cell_len - len(title) - 4
        return Text.assemble((title, "bold"), "  ", fitted(ending(figures.database, room), room), "  ", right)

    def _queues(self, rows: int) -> list[Text]:
        queues = self._figures.queues
        most = max(8, self._width * 3 // 10 if self._is_narrow else self._width // 5)
        name_width = max(5, min(max((len(queue.name) for queue in queues), default=0), most))
        columns: list[tuple[str, int, Callable[[QueueFigures], int]]] = [
            ("wait", 5, lambda queue: queue.waiting_count),
            ("run", 4, lambda queue: queue.running_count),
            ("done", 5, lambda queue: queue.completed_count),
            ("fail", 5, lambda queue: queue.discarded_count),
        ]
        if self._is_narrow:
            columns = columns[: 2 if self._width >= 36 else 1 if self._width >= 28 else 0]
        room = self._width - 2 - name_width - sum(width + 1 for _, width, _ in columns) - 1

        def row(queue: QueueFigures) -> list[Text]:
            parts = [Text(fitted(queue.name, name_width))]
            for _, width, count in columns:
                parts.append(Text(fitted(number(count(queue)), width, right=True), "" if count(queue) else "dim"))
            words = Text(fitted(state_words(queue, self._figures.now), room))
            words.stylize(STATE_STYLES[queue.state], 0, len(queue.state))
            return [*parts, words]

        names = [fitted("queue", name_width), *(fitted(name, width, right=True) for name, width, _ in columns)]
        heading = self._heading([*names, fitted("state", room)], "queues")
        chosen = next((place for place, queue in enumerate(queues) if queue.name == self._choice.queue), 0)
        return [heading, *self._rows(queues, chosen, rows, row, is_focused=self._choice.focus == "queues")]

    def _jobs(self, rows: int) -> list[Text]:
        jobs = self._figures.jobs
        id_width = max([2, *(len(str(job.id)) for job in jobs)])
        queue_width = 0 if self._is_narrow else max(5, min(max((len(job.queue) for job in jobs), default=0), self._width // 5))
        bar = 10 if self._width >= WIDE else 5
        # Progress, tokens per second, time taken and time left; a narrow terminal shows progress and one of the times.
        widths = (4, 6) if self._is_narrow else (bar + 5, 7, 5, 6)
        titles = ("", "time") if self._is_narrow else ("progress", "tok/s", "for", "left")
        taken = 2 + id_width + 1 + (queue_width + 1 if queue_width else 0) + sum(width + 1 for width in widths)
        room = max(4, self._width - taken)

        def row(job: JobFigures) -> list[Text]:
            style = "" if job.is_running else "dim"
            parts = [Text(fitted(str(job.id), id_width, right=True), style)]
            if queue_width:
                parts.append(Text(fitted(job.queue, queue_width), style))
            note = f" · {one_line(job.note)}" if job.note else ""
            parts.append(Text(fitted(work(job) + note, room), style))
            if not job.is_running:
                span = sum(widths) + len(widths) - 1
                reason = f": {job.waits_for[0].reason.replace('_', ' ')}" if job.waits_for else ""
                return [*parts, Text(fitted(f"next{reason}", span), style)]
            left = "" if job.left_s is None else f"~{length(job.left_s)}"
            took = "" if job.elapsed_s is None else length(job.elapsed_s)
            done = "" if job.progress is None else f"{percent(job.progress)}%"
            if job.stopping:
                left = "stops"
            if self._is_narrow:
                return [*parts, Text(fitted(done, widths[0], right=True)), Text(fitted(left or took, widths[1], right=True))]
            progress = Text(" " * widths[0])
            if job.progress is not None:
                progress = Text.assemble(self._bar(job.progress, bar), fitted(done, 5, right=True))
            rate = "" if job.tokens_per_s is None else f"{job.tokens_per_s:.1f}"
            cells = zip((rate, took, left), widths[1:], strict=True)
            return [*parts, progress, *(Text(fitted(text, width, right=True)) for text, width in cells)]

        cells = [fitted("id", id_width, right=True)]
        if queue_width:
            cells.append(fitted("queue", queue_width))
        cells.append(fitted("job", room))
        for place, (title, width) in enumerate(zip(titles, widths, strict=True)):
            cells.append(fitted(title, width, right=self._is_narrow or place > 0))
        heading = self._heading(cells, "jobs")
        if not jobs:
            return [heading, Text("  no running or waiting jobs", "dim")][: rows + 1]
        chosen = next((place for place, job in enumerate(jobs) if job.id == self._choice.job), 0)
        more = self._figures.more_running
        return [heading, *self._rows(jobs, chosen, rows, row, is_focused=self._choice.focus == "jobs", uncounted=more)]

    def _bar(self, progress: float, width: int) -> Text:
        full = int(progress * width + 1e-9)
        return Text.assemble((self._signs.full * full, "cyan"), (self._signs.empty * (width - full), "dim"))

    def _heading(self, cells: Sequence[str], of: Focus) -> Text:
        return Text("  " + " ".join(cells), "bold underline" if self._choice.focus == of else "dim underline")

    def _rows(
        self,
        items: Sequence[Item],
        chosen: int,
        rows: int,
        row: Callable[[Item], list[Text]],
        *,
        is_focused: bool,
        uncounted: int = 0,
    ) -> list[Text]:
        """Draw the part of a list that has the selected row, and count the rows outside it."""
        if rows <= 0:
            return []
        count = len(items)
        all_fit = count + bool(uncounted) <= rows
        shown = count if all_fit else max(1, rows - 1)
        first = min(max(0, chosen - shown + 1), count - shown)
        lines = []
        for place, item in enumerate(items[first : first + shown], first):
            marked = place == chosen
            line = Text.assemble((f"{self._signs.chosen} " if marked else "  "), Text(" ").join(row(item)))
            if marked and is_focused:
                line.stylize("reverse")
            lines.append(line)
        rest = count - shown + uncounted
        if rest and len(lines) < rows:
            lines.append(Text(f"  + {rest} more" + (f", {first} of them above" if first else ""), "dim"))
        return lines

    # --- devices, and what comes next ---

    def _card(self, device: DeviceFigures) -> list[Text]:
        if device.lost is not None:
            age = f", read {since(device.read_at, now=self._figures.now)}" if device.read_at else ""
            return [
                Text.assemble((f"{one_line(device.name)} ", "bold"), (f"LOST: {one_line(device.lost)}", "bold red")),
                Text(f"  {format_size(device.reserved_bytes)} of {format_size(device.budget_bytes)} reserved{age}"),
            ]
        reserved = f"{format_size(device.reserved_bytes)} of {format_size(device.budget_bytes)}"
        if not self._is_narrow:
            others = f" · others {format_size(device.others_bytes)}" if device.others_bytes else ""
            reserved = f"{reserved} reserved{others}"
        name = fitted(device.name, min(10, len(device.name)))
        width = max(6, min(BAR, self._width - len(name) - len(reserved) - 2))
        return [
            Text.assemble((f"{name} ", "bold"), self._memory(device, width), f" {reserved}"),
            Text.assemble("  ", self._condition(device)),
        ]

    def _memory(self, device: DeviceFigures, width: int) -> Text:
        """Draw the memory as a bar: loaded models and promised memory on the left, other programs on the right, the budget."""
        total = device.total_bytes or device.budget_bytes or 1
        resident = min(width, round(width * device.resident_bytes / total))
        promised = min(width, round(width * (device.resident_bytes + device.promised_bytes) / total))
        others = width - min(width, round(width * (device.others_bytes or 0) / total))
        budget = round(width * device.budget_bytes / total)
        signs = self._signs

        def sign(place: int) -> tuple[str, str]:
            if place == budget:
                return signs.budget, "yellow"
            if place < promised:
                return signs.full if place < resident else signs.promised, "cyan"
            return (signs.others, "yellow") if place >= others else (signs.empty, "dim")

        return Text.assemble(*((sign * len(list(run)), style) for (sign, style), run in groupby(map(sign, range(width)))))

    def _condition(self, device: DeviceFigures) -> Text:
        parts: list[str | tuple[str, str]] = []
        if device.temperature_c is not None:
            parts.append(f"{device.temperature_c} °C")
        if device.utilisation_percent is not None:
            parts.append(f"{device.utilisation_percent} % busy")
        parts.append(models_words(device))
        parts += [f"waiting for job {job_id}'s memory" for job_id in device.cleaning]
        if device.read_at is None:
            parts.append("not read yet")
        else:
            is_old = (self._figures.now - device.read_at).total_seconds() > STALE_S
            words = since(device.read_at, now=self._figures.now) if is_old or not self._is_narrow else ""
            if words:
                parts.append((f"read {words}", "yellow" if is_old else ""))
            if device.used_bytes is None:
                parts.append("memory unknown")
        if device.card and self._width >= WIDE:
            parts.append(one_line(device.card))
        line = Text()
        for place, part in enumerate(parts):
            line.append(" · " if place else "", "dim")
            line.append(*((part,) if isinstance(part, str) else part))
        return line

    def _extras(self) -> list[Text]:
        figures = self._figures
        lines = [
            Text(service_sentence(service, figures.now), "red" if service.error or service.worker_id is None else "")
            for service in figures.services
        ]
        if figures.edges:
            more = f" + {counted(len(figures.edges) - 1, 'more window')}" if len(figures.edges) > 1 else ""
            lines.insert(0, Text.assemble(edge_sentence(figures.edges[0], figures.now), (more, "dim")))
        if len(lines) > MOST_EXTRAS:
            lines[MOST_EXTRAS - 1 :] = [Text(f"+ {counted(len(lines) - MOST_EXTRAS + 1, 'more service')}", "dim")]
        return lines
