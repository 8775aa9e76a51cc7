"""Reads single keys from the terminal and restores the terminal afterwards; draws nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["RESIZED", "RESUMED", "Keyboard"]

RESIZED, RESUMED = "resized", "resumed"  # not keys, but reported like keys
TERMINATED = 128 + 15  # the exit status of a process that SIGTERM ended
ESCAPE_S = 0.05  # how long the rest of an escape sequence may take, over a slow line
POLL_S = 0.05  # where a key can only be polled for

SEQUENCES = {
    "[A": "up", "OA": "up", "[B": "down", "OB": "down", "[C": "right", "OC": "right", "[D": "left", "OD": "left",
    "[5~": "page up", "[6~": "page down", "[H": "home", "OH": "home", "[1~": "home", "[F": "end", "OF": "end", "[4~": "end",
    "[Z": "tab",
}  # fmt: skip
CHARACTERS = {"\t": "tab", "\r": "enter", "\n": "enter", "\x1b": "escape", "\x0c": "redraw", "\x7f": "backspace"}
OF_WINDOWS = {"H": "up", "P": "down", "K": "left", "M": "right", "I": "page up", "Q": "page down", "G": "home", "O": "end"}

if sys.platform == "win32":
    import msvcrt

    class Keyboard:
        """Reads keys from the console, which needs no preparation."""

        def __init__(self, *, leave: Callable[[], None], enter: Callable[[], None]) -> None:
            self._size = os.get_terminal_size()

        def __enter__(self) -> Keyboard:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def forget(self) -> None:
            """Drop the keys that were pressed but not read."""
            while msvcrt.kbhit():
                msvcrt.getwch()

        def wait(self, timeout_s: float) -> str | None:
            """Return the next key, or None after `timeout_s`."""
            ends_s = time.monotonic() + timeout_s
            while not msvcrt.kbhit():
                if os.get_terminal_size() != self._size:
                    self._size = os.get_terminal_size()
                    return RESIZED
                if time.monotonic() >= ends_s:
                    return None
                time.sleep(POLL_S)
            key = msvcrt.getwch()
            if key == "\x03":
                raise KeyboardInterrupt
            if key in ("\x00", "\xe0"):
                return OF_WINDOWS.get(msvcrt.getwch())
            return CHARACTERS.get(key, key)

else:
    import select
    import termios
    import tty

    class Keyboard:
        """Reads keys from the terminal on stdin: each at once, without echo. Leaving it restores the terminal.

        Signals are reported like keys, so nothing is half drawn: a new size, Ctrl-C (KeyboardInterrupt from `wait`), SIGTERM
        (SystemExit) and Ctrl-Z. Before and after Ctrl-Z, `leave` and `enter` restore and retake the screen.
        """

        def __init__(self, *, leave: Callable[[], None], enter: Callable[[], None]) -> None:
            self._leave, self._enter = leave, enter
            self._fd = sys.stdin.fileno()
            self._typed: list[str] = []
            self._signals: dict[int, Any] = {}
            self._is_interrupted = False

        def __enter__(self) -> Keyboard:
            self._before = termios.tcgetattr(self._fd)
            self._rings, self._wakeups = os.pipe()
            for end in (self._rings, self._wakeups):
                os.set_blocking(end, False)
            tty.setcbreak(self._fd)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGWINCH, signal.SIGTSTP):
                self._signals[number] = signal.signal(number, self._ring)
            return self

        def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            for number, handler in self._signals.items():
                signal.signal(number, handler)
            os.close(self._rings)
            os.close(self._wakeups)

        def forget(self) -> None:
            """Drop the keys that were pressed but not read."""
            self._typed.clear()
            with contextlib.suppress(termios.error):
                termios.tcflush(self._fd, termios.TCIFLUSH)

        def wait(self, timeout_s: float) -> str | None:
            """Return the next key, or None after `timeout_s`.

            Raises: KeyboardInterrupt after Ctrl-C or when the terminal is gone; SystemExit after SIGTERM.
            """
            if self._typed:
                return self._typed.pop(0)
            ready, _, _ = select.select([self._fd, self._rings], [], [], max(0.0, timeout_s))
            if self._rings in ready:
                return self._signal()
            if self._fd not in ready:
                return None
            try:
                data = os.read(self._fd, 1024)
                if data == b"\x1b" and select.select([self._fd], [], [], ESCAPE_S)[0]:
                    data += os.read(self._fd, 1024)
            except OSError:
                data = b""
            if not data:
                raise KeyboardInterrupt
            self._typed = keys_of(data.decode(errors="ignore"))
            return self._typed.pop(0) if self._typed else None

        def _ring(self, number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT:
                if self._is_interrupted:  # the first was not handled yet: something takes long
                    raise KeyboardInterrupt
                self._is_interrupted = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._wakeups, bytes([number]))

        def _signal(self) -> str:
            rung = set(os.read(self._rings, 1024))
            if signal.SIGINT in rung:
                raise KeyboardInterrupt
            if signal.SIGTERM in rung:
                raise SystemExit(TERMINATED)
            if signal.SIGTSTP in rung:
                self._suspend()
                return RESUMED
            return RESIZED

        def _suspend(self) -> None:
            """Stop this process as Ctrl-Z does, and take the terminal again when it is continued."""
            self._leave()
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, self._ring)
            tty.setcbreak(self._fd)
            self._enter()


def keys_of(text: str) -> list[str]:
    """Split what a terminal sent into keys; unknown sequences are dropped."""
    keys = []
    while text:
        if text[0] == "\x1b" and len(text) > 1 and text[1] in "[O":
            end = next((place for place, sign in enumerate(text[2:], 3) if sign.isalpha() or sign == "~"), len(text))
            key = SEQUENCES.get(text[1:end])
            text = text[end:]
            if key is None:
                continue
        else:
            key, text = CHARACTERS.get(text[0], text[0]), text[1:]
        keys.append(key)
    return keys
