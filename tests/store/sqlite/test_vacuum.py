"""Vacuuming: the file becomes smaller and keeps what it has; where somebody is in the way nothing is changed."""

from __future__ import annotations

import sqlite3

import pytest

from gpuqueue.domain.errors import StoreBusy
from gpuqueue.domain.job import State
from gpuqueue.store.sqlite.integrity import check_file
from gpuqueue.store.sqlite.vacuum import vacuum
from gpuqueue.store.store import Store
from tests.store.rows import Rows, at, job_of

LARGE = f'{{"text": "{"x" * 20_000}"}}'


@pytest.fixture
def emptied(store: Store, rows: Rows) -> Store:
    """A file with much room that is no longer needed."""
    for _ in range(100):
        rows.enqueue(arguments=LARGE)
    store.jobs.cancel_all("work", now_us=at(1))
    rows.enqueue(arguments=LARGE)
    store.jobs.prune_all(State.CANCELLED, before_us=at(9))
    store.upkeep.checkpoint()
    return store


def test_the_file_becomes_smaller_and_keeps_its_jobs(emptied: Store, rows: Rows) -> None:
    before = emptied.engine.path.stat().st_size
    done = vacuum(emptied.engine.path)
    assert done.finished
    assert done.before_bytes >= before > 2_000_000
    assert done.after_bytes == emptied.engine.path.stat().st_size < 300_000
    assert emptied.upkeep.log_bytes() == 0
    assert job_of(emptied, 101).arguments == {"text": "x" * 20_000}
    assert check_file(emptied.engine.path) == []
    assert rows.enqueue() == 102


def test_a_reader_or_a_writer_in_the_way_is_told_and_nothing_is_changed(emptied: Store, rows: Rows) -> None:
    size = emptied.engine.path.stat().st_size
    with emptied.snapshot() as reads:
        reads.counts()
        rows.enqueue()
        with pytest.raises(StoreBusy, match="another connection"):
            vacuum(emptied.engine.path, patience_s=0.01)
    assert emptied.engine.path.stat().st_size == size

    def while_writing(_connection: sqlite3.Connection) -> None:
        with pytest.raises(StoreBusy, match="another connection"):
            vacuum(emptied.engine.path, patience_s=0.01)

    emptied.engine.writer.run(while_writing)
    assert vacuum(emptied.engine.path).finished
