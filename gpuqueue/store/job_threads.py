"""Publishes which job each job thread of a worker runs, and which its task waits for, in a file beside its liveness file.

It is written through a memory map, without a write to the database; any process on the machine can read it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import weakref
from pathlib import Path

from gpuqueue.domain.explanation import JobThread, JobThreads

# The job that a thread runs, also in another process; one whose task waits, and the one it waits for; 0 for none. The first
# entry counts the threads.
ENTRY = struct.Struct("<qqq")
JOB, WAIT = struct.Struct("<q"), struct.Struct("<qq")


def path_of(runtime_dir: Path | str, worker_id: str) -> Path:
    return Path(runtime_dir) / f"{worker_id}.waits"


class Waits:
    """The file of this process's own worker: its `pool` of threads, then those of its devices."""

    def __init__(self, runtime_dir: Path, worker_id: str, *, pool: int, devices: int) -> None:
        self.path = path_of(runtime_dir, worker_id)
        size = (1 + pool + devices) * ENTRY.size
        with open(self.path, "w+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        ENTRY.pack_into(self._map, 0, pool, devices, 0)
        _open_files.add(self)

    def runs(self, thread: int, job_id: int) -> None:
        """Record which job a thread runs, 0 for none."""
        if not self._map.closed:  # a thread that is left behind in a given-up job may end later
            JOB.pack_into(self._map, (1 + thread) * ENTRY.size, job_id)

    def publish(self, thread: int, job_id: int, awaited_id: int) -> None:
        """Record which job the job in a thread waits for, 0 for none."""
        if not self._map.closed:
            WAIT.pack_into(self._map, (1 + thread) * ENTRY.size + JOB.size, job_id, awaited_id)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._map.close()


def threads_of(runtime_dir: Path | str, worker_id: str) -> JobThreads | None:
    """Return a worker's threads; None if its file is not visible from here: another container, or an older version."""
    try:
        (pool, _, _), *entries = ENTRY.iter_unpack(path_of(runtime_dir, worker_id).read_bytes())
    except (OSError, ValueError, struct.error):
        return None
    # What another job waits for is left from before: that one has ended, or was given up.
    found = [JobThread(job_id, awaited if job_id == waiter else 0) for job_id, waiter, awaited in entries]
    return JobThreads(tuple(found[:pool]), tuple(found[pool:]))


def forget(runtime_dir: Path | str, worker_id: str) -> None:
    """Remove a dead worker's file."""
    with contextlib.suppress(OSError):
        path_of(runtime_dir, worker_id).unlink()


_open_files: weakref.WeakSet[Waits] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for waits in list(_open_files):
        waits._map.close()  # a child shares the map, and its threads are others


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
