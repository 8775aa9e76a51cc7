"""Owns a real terminal for a command line: a pseudo-terminal of some width, what a person types, and what is shown."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from gpuqueue.testing.waiting import DEADLINE_S
from tests.processes import started

END = "\x1e"
SEVERAL = f"""
import json, sys
from gpuqueue.cli import main
for argv in json.loads(sys.argv[1]):
    print(main(argv), end={END!r}, flush=True)
"""


def shown(
    folder: Path, *argv: object, columns: int = 80, types: str = "", environ: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `gpuqueue …` in a terminal; returns its exit status and all that the terminal showed, colours included."""
    return _run(folder, ["-m", "gpuqueue", *map(str, argv)], columns, types, environ)


def screens(
    folder: Path, commands: Iterable[Sequence[str]], columns: int = 80, environ: Mapping[str, str] | None = None
) -> list[str]:
    """Run several command lines in one process and terminal; returns what each showed, its exit status as the last line."""
    status, seen = _run(folder, ["-c", SEVERAL, json.dumps(list(commands))], columns, "", environ)
    assert status == 0, seen
    return seen.removesuffix(END).split(END)


def _run(folder: Path, arguments: Sequence[str], columns: int, types: str, environ: Mapping[str, str] | None) -> tuple[int, str]:
    controlling, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, *arguments]
    environment = {**inherited, "TERM": "xterm", "PYTHONPATH": str(folder), **(environ or {})}
    with started(command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        os.write(controlling, types.encode())
        seen = b""
        while True:
            try:
                piece = os.read(controlling, 65536)
            except OSError:  # Linux says so when the last process has left the terminal
                break
            if not piece:
                break
            seen += piece
        os.close(controlling)
        return process.wait(DEADLINE_S), seen.decode().replace("\r\n", "\n")
