"""Owns a terminal that a program runs in: what its screen shows now, the keys that a person presses, and its size.

It understands what `top` writes, and fails at a line that is longer than the screen is wide.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.cells import get_character_cell_size

from gpuqueue.testing.waiting import DEADLINE_S, wait_until
from tests.processes import started

PARTS = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])|([\r\n\x07])|([^\x1b\r\n\x07]+)", flags=re.S)
# In a session of its own, with this terminal as the one from which Ctrl-C comes.
IN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Grid:
    """What a terminal shows, cell by cell: the usual screen and the other one, which programs leave as they came."""

    def __init__(self, columns: int, lines: int) -> None:
        self.modes = {"1049": False, "25": True, "7": True}
        self.shown = ""  # what the usual screen got, as text
        self.was_resized = False  # what was written for another size may still come
        self._rest = ""
        self._row = self._column = 0
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self._cells = [[" "] * columns for _ in range(lines)]

    @property
    def is_other_screen(self) -> bool:
        return self.modes["1049"]

    @property
    def rows(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._cells]

    def feed(self, text: str) -> None:
        """Take what a program wrote."""
        text = self._rest + text
        begun = re.search(r"\x1b(\[[?0-9;]*)?$", text)  # a sequence of which the end is still to come
        self._rest = begun[0] if begun else ""
        text = text[: len(text) - len(self._rest)]
        place = 0
        for part in PARTS.finditer(text):
            assert part.start() == place, f"not understood: {text[place : part.end()]!r}"
            place = part.end()
            self._take(part)
        assert place == len(text), f"not understood: {text[place:]!r}"

    def _take(self, part: re.Match[str]) -> None:
        private, numbers, verb, control, plain = part.groups()
        if verb in ("h", "l") and private:
            self.modes[numbers] = verb == "h"
        elif verb == "H":
            row, _, column = numbers.partition(";")
            self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
        elif control == "\r":
            self._column = 0
        elif not self.is_other_screen:
            self.shown += control or plain or ""
        elif plain:
            self._put(plain)
        else:
            assert verb == "m", f"not understood: {part[0]!r}"

    def _put(self, text: str) -> None:
        for sign in text:
            assert sign.isprintable(), f"{sign!r} is written as it is"
            width = get_character_cell_size(sign)
            if self._row >= self.lines or self._column >= self.columns:
                assert self.was_resized, f"beyond the screen: {text!r}"
                continue
            self._cells[self._row][self._column : self._column + width] = [sign, *[""] * (width - 1)]
            self._column += width


class Terminal:
    """A program in a terminal; `press` keys and `wait` for what it shows."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        columns: int = 80,
        lines: int = 24,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._controlling, self._terminal = pty.openpty()
        self.grid = Grid(columns, lines)
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._set_size(columns, lines)
        self.modes_before = termios.tcgetattr(self._terminal)
        inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._running = ExitStack()
        self.process = self._running.enter_context(
            started(
                [sys.executable, "-c", IN_TERMINAL, *command],
                cwd=folder,
                stdin=self._terminal,
                stdout=self._terminal,
                stderr=self._terminal,
                env={**inherited, "TERM": "xterm", "PYTHONPATH": str(folder), **(environ or {})},
            )
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        # The reader ends when nobody has the terminal open any more.
        os.close(self._terminal)
        self._reader.join(DEADLINE_S)
        os.close(self._controlling)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            try:
                piece = os.read(self._controlling, 65536)
            except OSError:
                return
            if not piece:
                return
            with self._lock:
                try:
                    self.grid.feed(decoder.decode(piece))
                except BaseException as error:
                    self._failure = self._failure or error

    # --- what a person does and sees ---

    def press(self, keys: str) -> None:
        """Press keys, all at once."""
        os.write(self._controlling, keys.encode())

    def disturb(self, text: str) -> None:
        """Write to the screen as another program would."""
        os.write(self._terminal, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the window's size; the program is told."""
        with self._lock:
            self.grid.was_resized = True
            self.grid.resize(columns, lines)
        self._set_size(columns, lines)

    @property
    def text(self) -> str:
        """The lines that are shown now."""
        with self._lock:
            assert self._failure is None, self._failure
            return "\n".join(self.grid.rows)

    @property
    def modes_now(self) -> list[object]:
        return termios.tcgetattr(self._terminal)

    def wait(self, *words: str, without: str = "") -> str:
        """Wait until all these words are shown, and return the screen."""

        def shown() -> str:
            text = self.text
            return text if all(word in text for word in words) and not (without and without in text) else ""

        try:
            return str(wait_until(shown, f"{words} on the screen"))
        except AssertionError:
            raise AssertionError(f"{words} are not shown:\n{self.text}\n{self.grid.shown}") from None

    def wait_for(self, condition: Callable[[str], object], what: str) -> None:
        """Wait until the screen is as a condition wants it."""
        wait_until(lambda: condition(self.text), what)

    def line(self, word: str) -> str:
        """The line that has the word."""
        return next(line for line in self.text.split("\n") if word in line)

    def end(self) -> int:
        """Wait for the program's end and return its exit status, negative for a signal."""
        return self.process.wait(DEADLINE_S)
