"""Writes and reads what the processes of a torture run saw, outside the queue's file: one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FOLDER = "TORTURE_FOLDER"


def mark(name: str, **what: Any) -> None:
    """Add a line in one write, so that lines of several processes never mix; `at` is one clock for all processes."""
    line = json.dumps({**what, "at": time.monotonic(), "pid": os.getpid()}) + "\n"
    descriptor = os.open(os.path.join(os.environ[FOLDER], name), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def marks(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
