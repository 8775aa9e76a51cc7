"""Raises a fault at one call between two of gpuqueue's modules, in whichever thread makes it first."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import gpuqueue

PACKAGE = str(Path(gpuqueue.__file__).parent) + "/"
CALLERS = tuple(PACKAGE + folder for folder in ("worker/", "executors/"))


class Point(NamedTuple):
    """A call: the file and line that makes it, and the function called, which lies in another file of the package."""

    caller: str
    line: int
    called: str

    def __str__(self) -> str:
        return f"{self.caller}:{self.line} → {self.called}"


class Faults:
    """While `armed`, threads that start under `watching` record the calls they make, or meet the fault at one of them."""

    def __init__(self, at: Point | None = None, fault: BaseException | None = None) -> None:
        self.armed = threading.Event()
        self.seen: dict[Point, None] = {}
        self.raised = False
        self._at = at
        self._fault = fault
        self._lock = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the threads that start inside the block."""
        threading.setprofile(self._on_event)
        try:
            yield
        finally:
            threading.setprofile(None)
            self.armed.clear()

    def _on_event(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or not self.armed.is_set():
            return
        caller = frame.f_back
        if caller is None:
            return
        file, code = caller.f_code.co_filename, frame.f_code
        is_between = file.startswith(CALLERS) and code.co_filename.startswith(PACKAGE) and code.co_filename != file
        if not is_between or frame.f_lasti > 0:  # a generator that goes on is not called
            return
        point = Point(file.removeprefix(PACKAGE), caller.f_lineno, code.co_qualname)
        self.seen.setdefault(point)
        if point != self._at or self._fault is None:
            return
        with self._lock:
            if self.raised:
                return
            self.raised = True
        sys.setprofile(None)  # as Python does itself when a profile function raises
        raise self._fault
