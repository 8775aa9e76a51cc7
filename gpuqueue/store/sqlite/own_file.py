"""Notices that an open database file was deleted or replaced: what is written to it, no other process reads."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from gpuqueue.domain.errors import FileReplaced

LOOK_EVERY_S = 0.1
LOOKS_SAVED_S = 0.5  # a process that uses the file rarely looks at each use


class OwnFile:
    """The file that a process has open.

    `due_s` is when to look again, by the monotonic clock: its user compares, to save a call. It never comes unless
    `looks_by_itself`. `stored` are the jobs that were stored since the last look. `tell_replaced` is called once, when another
    file has the name.
    """

    def __init__(self, path: Path, *, looks_by_itself: bool) -> None:
        self._path = path
        self.tell_replaced: Callable[[], object] | None = None
        self._identity = self._find()
        self.due_s = -math.inf if looks_by_itself else math.inf
        self.stored: list[int] = []

    def look(self) -> None:
        """Look whether the name still leads to the open file. Raises: FileReplaced."""
        self.due_s = max(self.due_s, time.monotonic() - LOOKS_SAVED_S) + LOOK_EVERY_S
        stored, self.stored = self.stored, []
        found = self._find()
        if found == self._identity:
            return
        if self.due_s < math.inf:
            self.due_s = -math.inf  # every further use fails
        self.stored = [*stored, *self.stored]
        tell, self.tell_replaced = self.tell_replaced, (self.tell_replaced if found is None else None)
        if found is not None and tell is not None:
            tell()
        raise FileReplaced(self._path, stored)

    def _find(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino
