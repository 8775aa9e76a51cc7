"""Publishes which job the task in each job thread of a worker waits for, in a file beside its liveness file.

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
from gpuqueue.store import liveness

# A job whose task waits, and the one it waits for, 0 for none; for each thread in the order of the liveness file's slots. The
# first entry counts the threads of the pool and of the devices.
ENTRY = struct.Struct("<qq")


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
        ENTRY.pack_into(self._map, 0, pool, devices)
        _open_files.add(self)

    def publish(self, thread: int, job_id: int, awaited_id: int) -> None:
        """Record which job the job in a thread waits for, 0 for none."""
        if not self._map.closed:  # a thread that is left behind in a given-up job may end later
            ENTRY.pack_into(self._map, (1 + thread) * ENTRY.size, job_id, awaited_id)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._map.close()


def threads_of(runtime_dir: Path | str, worker_id: str) -> JobThreads | None:
    """Return a worker's threads; None if its files are not visible from here: another container, or an older version."""
    running = liveness.running(runtime_dir, worker_id)
    try:
        (pool, devices), *waits = ENTRY.iter_unpack(path_of(runtime_dir, worker_id).read_bytes())
    except (OSError, ValueError, struct.error):
        return None
    if running is None or not pool + devices == len(waits) <= len(running):
        return None
    # What another job waits for is left from before: that one has ended, or was given up.
    found = [
        JobThread(job_id, awaited if job_id == waiter else 0) for job_id, (waiter, awaited) in zip(running, waits, strict=False)
    ]
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
