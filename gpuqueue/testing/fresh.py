"""Gives a queue object an empty file for a test; changes nothing in the application's file.

@pytest.fixture(autouse=True)
def own_queue():
    with fresh(gq):
        yield
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from weakref import finalize

from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.loading import database_url

__all__ = ["fresh"]

Queue = TypeVar("Queue", bound=GPUQueue)


@contextmanager
def fresh(gq: Queue) -> Iterator[Queue]:
    """Inside the block, this queue object uses a new, empty file, which is deleted afterwards; tasks and settings stay.

    A job handle belongs to the file it was created with. Blocks may be nested, and may contain `eager` or be inside it.
    A worker that was started before keeps using the file it has opened.
    """
    folder = tempfile.mkdtemp(prefix="gpuqueue-")
    remove = finalize(gq, shutil.rmtree, folder, ignore_errors=True)  # also where the process ends inside the block
    before, enqueuer = gq.config, gq._enqueuer
    gq.close()
    gq.config = replace(before, database=database_url(Path(folder) / "fresh.db", relative_to=folder))
    gq._enqueuer = enqueuer.for_file_of(gq.config)
    try:
        yield gq
    finally:
        gq.close()
        gq.config, gq._enqueuer = before, enqueuer
        remove()
