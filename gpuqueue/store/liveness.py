"""Tells whether a worker lives: by the lock of its liveness file, and by how long its row has not changed.

A process that obtains the lock has proof that the worker is dead; a pid would prove nothing across containers. A worker that
holds it may be frozen, or on another host: its silence counts too. The file's slots name the jobs that the worker runs. They are
written through a memory map, so a killed worker leaves behind which jobs it was *executing* (a claimed job that had not
started must not count as a crash), without a write to the database per start.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Collection, Hashable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: one process, no other worker to prove dead
    fcntl = None  # type: ignore[assignment]

SLOT = struct.Struct("<q")


def path_of(runtime_dir: Path | str, worker_id: str) -> Path:
    return Path(runtime_dir) / f"{worker_id}.life"


class Liveness:
    """This process's own liveness file, locked until `close` or the process's death. One slot per runner thread."""

    def __init__(self, runtime_dir: Path, worker_id: str, *, slots: int) -> None:
        self.path = path_of(runtime_dir, worker_id)
        self._file = open(self.path, "w+b")  # noqa: SIM115 - held open while the worker runs
        self._file.truncate(slots * SLOT.size)
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        _open_files.add(self)
        self._slots = mmap.mmap(self._file.fileno(), slots * SLOT.size)

    def executes(self, slot: int, job_id: int) -> None:
        """Record that the slot's thread executes this job; its id is negated if in another process; 0 for none."""
        if not self._slots.closed:  # a thread that is left behind in a given-up job may end later
            SLOT.pack_into(self._slots, slot * SLOT.size, job_id)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._slots.close()
        self._file.close()


def proven_dead(runtime_dir: Path | str, worker_id: str) -> frozenset[int] | None:
    """Return the ids of the jobs that a dead worker was executing, or None if its death is not proven.

    Not proven: the worker is alive, or its file is not visible from here (another host or container).
    """
    if fcntl is None:
        return None
    try:
        file = open(path_of(runtime_dir, worker_id), "r+b")  # noqa: SIM115 - closed by the with below
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        return _executed(file.read())


def alive_here(runtime_dir: Path | str, worker_id: str) -> bool | None:
    """Return whether a worker's process exists, perhaps frozen; None if its file is not visible from here."""
    if proven_dead(runtime_dir, worker_id) is not None:
        return False
    return None if executing(runtime_dir, worker_id) is None else True


def executing(runtime_dir: Path | str, worker_id: str) -> frozenset[int] | None:
    """Return the ids of the jobs that a worker's own process executes, dead or not; None as `running`."""
    try:
        return _executed(path_of(runtime_dir, worker_id).read_bytes())
    except (OSError, struct.error):
        return None


def running(runtime_dir: Path | str, worker_id: str) -> list[int] | None:
    """Return the job of each slot, in whatever process it runs, 0 for none; None if the file is not visible from here."""
    try:
        return [abs(job_id) for (job_id,) in SLOT.iter_unpack(path_of(runtime_dir, worker_id).read_bytes())]
    except (OSError, struct.error):
        return None


def _executed(content: bytes) -> frozenset[int]:
    return frozenset(job_id for (job_id,) in SLOT.iter_unpack(content) if job_id > 0)


def forget(runtime_dir: Path | str, worker_id: str) -> None:
    """Remove a dead worker's file, after its jobs are rescued."""
    with contextlib.suppress(OSError):
        path_of(runtime_dir, worker_id).unlink()


class Silences:
    """Measures how long workers have given no sign of life, by this process's monotonic clock alone.

    A wall clock that steps, or that of another host, makes nobody silent. Nor does a time in which this process did not look,
    because it was stopped itself: a gap between two looks counts for a third of the lease at most.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._heard: dict[str, tuple[Hashable, float, float]] = {}  # {worker: (its last sign, the last look, the silence since)}

    def silent_s(self, worker_id: str, sign: Hashable, *, lease_s: float) -> float:
        """Note the sign of life that a worker's row carries now; returns how long it has been the same."""
        now_s = self._monotonic()
        before, looked_at_s, silent_s = self._heard.get(worker_id, (None, now_s, 0.0))
        silent_s = silent_s + min(now_s - looked_at_s, lease_s / 3) if sign == before else 0.0
        self._heard[worker_id] = (sign, now_s, silent_s)
        return silent_s

    def forget_others(self, worker_ids: Collection[str]) -> None:
        """Forget all workers but these."""
        for worker_id in self._heard.keys() - set(worker_ids):
            del self._heard[worker_id]


_open_files: weakref.WeakSet[Liveness] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # The lock belongs to the open file, which a child shares, also through the map: a dead worker would seem alive.
    for liveness in list(_open_files):
        liveness._slots.close()
        liveness._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
