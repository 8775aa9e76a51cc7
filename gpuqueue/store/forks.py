"""Closes what is open before this process forks, and tells a child which files it was born with; opens nothing itself.

A child shares its parent's open files, but not their locks: SQLite there believes in locks that it does not have, and what it
writes is lost once the parent closes its file and removes the log.
"""

from __future__ import annotations

import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import RLock, get_ident
from typing import Protocol, TypeVar

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

    def resume(self) -> None: ...

    def begin_in_child(self) -> None: ...


# Takes a file's real path; names this thread's connection to it that gpuqueue did not open, or None. An integration adds one for
# the connections that its framework gives each thread.
owners: list[Callable[[str], str | None]] = []

current: Turn | None = None  # while this process forks: nothing may be opened or used until `wait` returns
_open: weakref.WeakValueDictionary[int, Open] = weakref.WeakValueDictionary()
_forking = RLock()  # one thread forks at a time
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
        while current is not None and not is_within:
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
    """Wait until the fork is over. Raises: UsageError in the thread that forks."""
    fork = current
    if fork is not None:
        if fork[2] == get_ident():
            raise UsageError(
                "this thread is forking the process, so it cannot use the queue now; use it before or after the fork"
            )
        with fork[0]:
            pass


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


def _before_fork() -> None:
    global current, _is_opening
    _forking.acquire()
    _left.clear()
    current = new_turn()
    current[0].acquire()
    give_up_s = time.monotonic() + LONGEST_WAIT_S
    _is_opening = not until(lambda: not _threads_at_work() - {get_ident()}, give_up_s)
    for opened in _watched():
        left = opened.quiesce(give_up_s)
        if left:
            _left[opened.name] = left


def _after_fork_in_parent() -> None:
    global current
    fork, current = current, None
    _left.clear()
    for opened in _watched():
        opened.resume()
    if fork is not None:
        fork[0].release()
    with suppress(RuntimeError):  # the hook before was interrupted at once
        _forking.release()


def _begin_in_child() -> None:
    global current, _forking, _pid, _born_while_opening
    _forking, _pid = RLock(), os.getpid()
    _born_while_opening |= current is not None and _is_opening
    current = None
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
