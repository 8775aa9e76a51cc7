"""Runs `top` at a terminal: its loop, its keys and their actions on queues and jobs; the drawing is elsewhere."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from gpuqueue.cli.keyboard import RESIZED, RESUMED, Keyboard
from gpuqueue.cli.rendering import folded
from gpuqueue.cli.session import Session
from gpuqueue.cli.top_figures import Figures, Figuring, JobFigures
from gpuqueue.cli.top_follow import Following
from gpuqueue.cli.top_picture import ASCII, Choice, Signs, framed, picture
from gpuqueue.cli.top_words import one_line, work
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import GPUQueueError, StoreBusy, UnknownJob
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.moments import until

LOOK_S = 0.25  # how often it checks for changes, which takes microseconds
LOOK_AT_JOB_S = 0.1
CHANGED_S = 0.5  # the shortest time between two readings when something changes
COST = 10  # reading may take 1/COST of the time
MESSAGE_S = 20.0  # how long a message stays
Key = TypeVar("Key")
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"

HELP = """\
Tab        switch between queues and jobs
j k ↓ ↑    select a queue or a job
p          pause the queue: no more of its jobs start; running jobs continue
r          resume it, whoever paused it; windows and other holds stay
c          cancel the job; y confirms
f, Enter   follow the job's output and log; q or Esc goes back
q          quit; jobs keep running

held       starts nothing now, for the reason shown
paused     paused by a person or a program
waiting    its first job waits for the reason shown
~12s       time left, from the job's progress or from jobs like it

A device's bar: loaded models, memory reserved for jobs, at its end
memory of other programs, and the budget as a line."""


class Display:
    """The terminal's alternate screen; only lines that changed are written."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: list[list[Segment]] = []
        self._size = (0, 0)

    @property
    def signs(self) -> Signs:
        return ASCII if self._console.options.ascii_only else Signs()

    @property
    def size(self) -> tuple[int, int]:
        """The current columns and lines, whatever COLUMNS says."""
        try:
            size = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            size = os.terminal_size((0, 0))
        return size if size.columns and size.lines else shutil.get_terminal_size()

    def enter(self) -> None:
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        self._write(NO_WRAP)
        self._lines = []

    def leave(self) -> None:
        self._write(WRAP)
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    def forget(self) -> None:
        """Write all lines the next time."""
        self._lines = []

    def show(self, lines: Sequence[Text]) -> None:
        """Show lines, exactly as many as the screen has."""
        console = self._console
        if self._size != self.size:
            self._size, self._lines = self.size, []
        options = console.options.update(width=self._size[0], height=1)
        drawn = [console.render_lines(line, options, pad=True)[0] for line in lines]
        with console:  # written together at its end
            for place, line in enumerate(drawn):
                if place >= len(self._lines) or self._lines[place] != line:
                    console.update_screen_lines([line], 0, place)
        self._lines = drawn

    def _write(self, control: str) -> None:
        if not self._console.legacy_windows:
            self._console.file.write(control)
            self._console.file.flush()


class Screen:
    """One run of `top`: it draws the screen and acts on keys."""

    def __init__(self, session: Session, gq: GPUQueue, interval_s: float) -> None:
        self._session, self._gq, self._interval_s = session, gq, interval_s
        self._figuring = Figuring(gq)
        self._figures: Figures = self._figuring.read()  # an error is printed before the screen is taken
        self._choice = Choice()
        self._choice.settle(self._figures)
        self._following: Following | None = None
        self._has_help = False
        self._asked: JobFigures | None = None  # the job to cancel, while waiting for y or n
        self._message: Text | None = None
        self._message_ends_s = 0.0
        self._version: Hashable = None
        self._read_at_s = time.monotonic()
        self._cost_s = 0.0

    def run(self) -> int:
        """Show until a key ends it. Raises: StoreError when the file is gone; KeyboardInterrupt, SystemExit."""
        if not (sys.stdout.encoding or "").lower().startswith("utf") and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        display = Display(Console(highlight=False))
        with Keyboard(leave=display.leave, enter=display.enter) as keyboard, warnings_to(self._say_failed):
            try:
                display.enter()
                self._loop(display, keyboard)
            finally:
                display.leave()
        return 0

    def _loop(self, display: Display, keyboard: Keyboard) -> None:
        while True:
            if self._is_due():
                self._read()
            self._draw(display)
            while not self._is_due():
                key = keyboard.wait(min(self._interval_s, LOOK_S) if self._following is None else LOOK_AT_JOB_S)
                if key == "redraw":
                    display.forget()
                elif key not in (None, RESIZED, RESUMED):
                    if not self._press(key):
                        return
                    if self._asked is not None:
                        keyboard.forget()  # pasted text must not answer
                if key is not None:
                    break

    # --- reading ---

    def _is_due(self) -> bool:
        passed_s = time.monotonic() - self._read_at_s
        if passed_s < COST * self._cost_s:
            return False
        if self._following is not None:
            return passed_s >= LOOK_AT_JOB_S and (passed_s >= self._interval_s or self._is_changed())
        return passed_s >= self._interval_s or (passed_s >= min(CHANGED_S, self._interval_s / 2) and self._is_changed())

    def _is_changed(self) -> bool:
        return bool(self._gq.store.changed() != self._version)

    def _read(self) -> None:
        self._read_at_s = time.monotonic()
        try:
            self._version = self._gq.store.changed()
            if self._following is not None:
                self._following.read()
            else:
                self._figures = self._figuring.read()
                self._choice.settle(self._figures)
        except StoreBusy as error:
            self._say_failed(f"the screen is out of date: {error}")
        except UnknownJob as error:  # it was pruned while it was followed
            self._following = None
            self._say_failed(str(error))
        self._cost_s = time.monotonic() - self._read_at_s
        if self._message is not None and self._read_at_s > self._message_ends_s:
            self._message = None

    def _read_at_once(self) -> None:
        self._read_at_s = -self._interval_s - COST * self._cost_s

    # --- showing ---

    def _draw(self, display: Display) -> None:
        width, height = display.size
        if self._has_help:
            body = [Text(line) for text in HELP.split("\n") for line in folded(text, width, hang=11).split("\n")]
            lines = framed(body, [Text("press any key to go back", "dim")], width=width, height=height)
        elif self._following is not None:
            lines = self._following.picture(self._foot(), width=width, height=height, now=self._gq.now())
        else:
            lines = picture(self._figures, self._choice, self._foot(), width=width, height=height, signs=display.signs)
        display.show(lines)

    def _foot(self) -> Text | None:
        if self._asked is not None:
            job = self._asked
            return Text(f"Cancel job {job.id} in {job.queue} ({one_line(work(job))})? y/n", "bold yellow")
        return self._message

    def _say(self, text: str, style: str = "green") -> None:
        self._message = Text(one_line(text), style)
        self._message_ends_s = time.monotonic() + MESSAGE_S

    def _say_failed(self, text: str) -> None:
        self._say(text, "bold red")

    # --- keys ---

    def _press(self, key: str) -> bool:
        """Act on a key; returns False to quit."""
        self._message = None
        try:
            if self._has_help:
                self._has_help = False
            elif self._asked is not None:
                job, self._asked = self._asked, None
                self._answer(job, key)
            elif key == "?":
                self._has_help = True
            elif self._following is not None:
                self._press_following(self._following, key)
            elif key == "q":
                return False
            else:
                self._press_lists(key)
        except GPUQueueError as error:
            self._say_failed(str(error))
        return True

    def _press_following(self, following: Following, key: str) -> None:
        steps = {"up": 1, "k": 1, "down": -1, "j": -1, "page up": 10, "page down": -10, "home": 10**6, "end": -(10**6)}
        if key in ("q", "escape", "backspace"):
            self._following = None
            self._read_at_once()
        elif key in steps:
            following.scroll(steps[key])
        elif key == "c":
            job = following.job
            self._asked = JobFigures(job.id, job.queue, job.task, job.expected_model, job.attempt, job.max_attempts)

    def _press_lists(self, key: str) -> None:
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10, "home": -(10**6), "end": 10**6}
        choice = self._choice
        if key == "tab":
            choice.focus = "jobs" if choice.focus == "queues" else "queues"
        elif key in steps:
            self._move(steps[key])
        elif key == "p":
            self._pause(self._chosen_queue())
        elif key == "r":
            self._resume(self._chosen_queue())
        elif key == "c":
            if choice.focus == "queues":
                self._say("only a job can be cancelled: press Tab, select one, press c", "yellow")
            else:
                self._asked = self._chosen_job()
        elif key in ("f", "enter"):
            job = self._chosen_job()
            if job is None:
                self._say("this queue has no running or next job", "yellow")
            else:
                self._following = Following(self._gq, job.id)

    def _move(self, steps: int) -> None:
        choice, figures = self._choice, self._figures
        if choice.focus == "queues":
            names = [queue.name for queue in figures.queues]
            choice.queue = _moved(names, choice.queue, steps) if names else ""
        else:
            ids = [job.id for job in figures.jobs]
            choice.job = _moved(ids, choice.job, steps) if ids else 0

    def _chosen_job(self) -> JobFigures | None:
        """Return the selected job; for a selected queue a running job, else its next one."""
        choice, jobs = self._choice, self._figures.jobs
        if choice.focus == "queues":
            return next((job for job in jobs if job.queue == choice.queue), None)
        return next((job for job in jobs if job.id == choice.job), None)

    def _chosen_queue(self) -> str:
        job = self._chosen_job() if self._choice.focus == "jobs" else None
        return self._choice.queue if job is None else job.queue

    # --- actions ---

    def _pause(self, queue: str) -> None:
        if not queue:
            return
        view = self._gq.view()
        there = view.queues[queue].paused if queue in view.queues else None
        if there is not None:  # pausing again would lose who did it, why and until when
            why = f" ({there.reason})" if there.reason else ""
            self._say(f"{queue} is already paused by {there.by}{why}{until(there.until, now=view.now)}", "yellow")
            return
        self._gq.pause(queue)
        self._say(f"{queue} is paused; running jobs continue. Undo: r, or {self._session.command('resume', queue)}")
        self._read_at_once()

    def _resume(self, queue: str) -> None:
        if not queue:
            return
        view = self._gq.view()
        there = view.queues[queue].paused if queue in view.queues else None
        was_paused = self._gq.resume(queue)
        held = self._gq.holds().get(queue, [])
        if not was_paused or there is None:
            self._say(f"{queue} was not paused" + (f"; held: {held[0].detail}" if held else ""), "yellow")
        else:
            why = f" ({there.reason})" if there.reason else ""
            rest = f"; still held: {held[0].detail}" if held else ""
            self._say(f"{queue} is resumed; it was paused by {there.by}{why}{rest}")
        self._read_at_once()

    def _answer(self, job: JobFigures, key: str) -> None:
        if key not in ("y", "Y"):
            self._say(f"job {job.id} was not cancelled", "yellow")
            return
        handle = self._gq.job(job.id)
        before = handle.state
        if not handle.cancel():
            state = before if before in FINISHED else handle.refresh().state
            self._say(f"job {job.id} is already {state}", "yellow")
        else:
            asked = handle.refresh().state is State.RUNNING
            what = "was asked to stop" if asked else "is cancelled"
            self._say(f"job {job.id} {what}. Run it again: {self._session.command('retry', job.id)}")
        self._read_at_once()


def _moved(keys: Sequence[Key], chosen: Key, steps: int) -> Key:
    place = keys.index(chosen) if chosen in keys else 0
    return keys[min(len(keys) - 1, max(0, place + steps))]


@contextmanager
def warnings_to(say: Callable[[str], None]) -> Iterator[None]:
    """Show the library's warnings on the screen instead of writing over it."""
    logger = logging.getLogger("gpuqueue")
    before = list(logger.handlers)
    logger.handlers[:] = [_Warnings(say)]
    try:
        yield
    finally:
        logger.handlers[:] = before


class _Warnings(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
