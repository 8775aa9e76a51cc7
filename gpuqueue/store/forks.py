"""Closes what is open before this process forks, and tells a child which files it was born with; opens nothing itself.

A child shares its parent's open files, but not their locks: SQLite there believes in locks that it does not have, and what it
writes is lost once the parent closes its file and removes the log.

A signal handler may raise at any step of what Python calls before and after a fork, even before the first, and Python goes on. So
a fork is one entry of a list, and one step ends it; if that step is not reached, whoever waits sees that the fork is over.
"""

from __future__ import annotations

import math
import os
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import get_ident
from types import FrameType
from typing import NamedTuple, Protocol, TypeVar

from gpuqueue.domain.errors import ForkedWithOpenFile, UsageError
from gpuqueue.store.turns import Turn, new_turn

LONGEST_WAIT_S = 2.0  # how long a fork waits for other threads
PAUSE_S = 0.000_5
Returned = TypeVar("Returned")
OPEN_FILES = ("/proc/self/fd", "/dev/fd")


class Open(Protocol):
    """What has a database file open."""

    @property
    def name(self) -> str: ...

    def quiesce(self, give_up_s: float) -> str | None: ...

    def begin_in_child(self) -> None: ...


class Fork(NamedTuple):
    """A call of `os.fork` that goes on: its thread, the frame that calls it, and the step in that frame."""

    thread: int
    caller: FrameType | None
    step: int


# Takes a file's real path; names this thread's connection to it that gpuqueue did not open, or None. An integration adds one for
# the connections that its framework gives each thread.
owners: list[Callable[[str], str | None]] = []

# While this process forks, nothing may be opened or used until `wait` returns. The first one's thread forks, and others wait for
# that. More than one of the same thread: a signal handler forks in the middle of its fork.
ongoing: list[Fork] = []
_open: weakref.WeakValueDictionary[int, Open] = weakref.WeakValueDictionary()
_at_work: list[Turn] = []  # threads that open or close a file now
_is_opening = False  # whether another thread was still at work when this process forked
_left: dict[str, str] = {}  # what could not be closed before this fork: {file: who has it open}

# In a child:
_pid = os.getpid()
_born_with: set[tuple[int, int]] = set()  # the files that were open: {(device, inode)}
_born_while_opening = False
_left_by_parent: dict[str, str] = {}


def watch(opened: Open) -> None:
    """Close this before forks, from now on."""
    _open[id(opened)] = opened


def at_work(work: Callable[[], Returned]) -> Returned:
    """Open or close a file: a fork waits for that, and that for a fork."""
    mine = new_turn()
    with mine[0], mine[1]:
        is_within = is_waited_for()
        _at_work.append(mine)
        while ongoing and not is_within:
            _at_work.remove(mine)
            wait()
            _at_work.append(mine)
        done = work()
    for turn in list(_at_work):  # those of interrupted threads too
        if not turn[1].locked():
            with suppress(ValueError):  # another thread was faster
                _at_work.remove(turn)
    return done


def is_waited_for() -> bool:
    """Say whether this thread opens or closes a file, so that a fork waits for it, and it must not wait for the fork."""
    return get_ident() in _threads_at_work()


def wait() -> None:
    """Wait until the forks that go on now are over. Raises: UsageError in a thread that forks."""
    for fork in list(ongoing):
        if fork.thread == get_ident() and _goes_on(fork):
            raise UsageError(
                "this thread is forking the process, so it cannot use the queue now; use it before or after the fork"
            )
        until(partial(_is_over, fork), math.inf)


def _goes_on(fork: Fork) -> bool:
    """Say whether a fork goes on, and end it if its thread has left the call."""
    if fork.caller is not None:
        frame = sys._current_frames().get(fork.thread)
        while frame is not None and frame is not fork.caller:
            frame = frame.f_back
        if frame is None or frame.f_lasti != fork.step:
            _end(fork)
    return fork in ongoing


def _is_over(fork: Fork) -> bool:
    return not _goes_on(fork)


def _end(fork: Fork) -> None:
    with suppress(ValueError):  # another thread was faster
        ongoing.remove(fork)


def until(is_over: Callable[[], bool], give_up_s: float) -> bool:
    """Wait in short sleeps, which leave nothing behind when they are interrupted; returns False if that took too long."""
    while not is_over():
        if time.monotonic() >= give_up_s:
            return False
        time.sleep(PAUSE_S)
    return True


def refuse_inherited(path: Path | str) -> None:
    """Raises: ForkedWithOpenFile if this process was forked while the file was open, and has not closed it since."""
    if os.getpid() != _pid:  # the server forked without telling Python
        _begin_in_child()
    if _born_while_opening:
        raise ForkedWithOpenFile(str(path), "another thread was opening a database")
    if not _born_with:
        return
    try:
        found = os.stat(path)
    except OSError:
        return
    identity = found.st_dev, found.st_ino
    if identity not in _born_with:
        return
    if identity in _open_files():
        raise ForkedWithOpenFile(str(path), f"{_whose(str(path))} had it open")
    _born_with.discard(identity)


def _whose(path: str) -> str:
    real = os.path.realpath(path)
    named = (owner(real) for owner in owners)
    return _left_by_parent.get(path) or next(filter(None, named), "a connection that gpuqueue did not open")


def _open_files() -> set[tuple[int, int]]:
    found = set()
    folder = next(filter(os.path.isdir, OPEN_FILES), None)
    for name in os.listdir(folder) if folder else ():
        with suppress(OSError):
            status = os.fstat(int(name))
            if stat.S_ISREG(status.st_mode):
                found.add((status.st_dev, status.st_ino))
    return found


def _threads_at_work() -> set[int]:
    return {thread for _, running, thread, _ in list(_at_work) if running.locked()}


def _caller() -> FrameType | None:
    """Return the frame that forks, from a function that Python calls at that; None if that is not a Python function."""
    return sys._getframe(1).f_back


def _before_fork() -> None:
    global _is_opening
    caller = _caller()
    ongoing.append(Fork(get_ident(), caller, caller.f_lasti if caller else 0))
    until(_is_first, math.inf)
    _left.clear()
    give_up_s = time.monotonic() + LONGEST_WAIT_S
    has_ended = False
    try:
        has_ended = until(lambda: not _threads_at_work() - {get_ident()}, give_up_s)
    finally:
        _is_opening = not has_ended and bool(_threads_at_work() - {get_ident()})
    for opened in _watched():
        left = opened.quiesce(give_up_s)
        if left:
            _left[opened.name] = left


def _is_first() -> bool:
    """Say whether no other thread's fork comes before this thread's."""
    while not _goes_on(first := ongoing[0]):
        pass
    return first.thread == get_ident()


def _after_fork_in_parent() -> None:
    caller = _caller()
    for fork in list(ongoing):
        if fork.thread == get_ident() and fork.caller is caller:
            _end(fork)
    if not ongoing:
        _left.clear()


def _begin_in_child() -> None:
    global _pid, _born_while_opening
    _pid = os.getpid()
    _born_while_opening |= bool(ongoing) and _is_opening
    ongoing.clear()
    _at_work.clear()
    _left_by_parent.update(_left)
    _left.clear()
    _born_with.clear()
    _born_with.update(_open_files())
    for opened in _watched():
        opened.begin_in_child()


def _watched() -> Iterator[Open]:
    return filter(None, (reference() for reference in _open.valuerefs()))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_begin_in_child)
