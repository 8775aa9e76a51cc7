"""A file that is deleted or replaced under a running client: it is told, with the jobs that it may have lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuqueue import GPUQueue
from gpuqueue.domain.errors import FileReplaced
from gpuqueue.store import database
from gpuqueue.store.sqlite.own_file import LOOK_EVERY_S, LOOKS_SAVED_S, OwnFile
from gpuqueue.testing.waiting import DEADLINE_S


def delete(gq: GPUQueue) -> None:
    for end in ("", "-wal", "-shm"):
        Path(f"{gq.database}{end}").unlink(missing_ok=True)


def replace(gq: GPUQueue) -> None:
    """Put another queue's file there, as a backup is put back."""
    copy = gq.database.with_name("backup.db")
    database.back_up(gq.database, copy, overwrite=True)
    delete(gq)
    os.replace(copy, gq.database)


@pytest.fixture
def gq(make_queue: Callable[..., GPUQueue]) -> Iterator[GPUQueue]:
    made = make_queue()
    made.task(name="work", queue="quite-new")(lambda number: number)
    yield made


USES: dict[str, Callable[[GPUQueue], Any]] = {
    "enqueue": lambda gq: gq.enqueue("work", {"number": 0}),
    "enqueue many": lambda gq: gq.enqueue_many([("work", {"number": 0})]),
    "enqueue with options": lambda gq: gq.enqueue("work", {"number": 0}, delay="1h"),
    "cancel": lambda gq: gq.job(1).cancel(),
    "pause": lambda gq: gq.pause("quite-new"),
    "counts": lambda gq: gq.counts(),
    "explain": lambda gq: gq.explain(1),
    "result": lambda gq: gq.job(1).result(timeout_s=DEADLINE_S),
}


@pytest.mark.parametrize("how", [delete, replace])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_first_use_after_it_says_so(gq: GPUQueue, use: Callable[[GPUQueue], Any], how: Callable[[GPUQueue], None]) -> None:
    job = gq.enqueue("work", {"number": 1})
    how(gq)
    with pytest.raises(FileReplaced, match=rf"Job {job.id} may be only in the old file: enqueue it again") as told:
        use(gq)
    assert told.value.job_ids == (job.id,)


def test_a_caller_that_waits_for_a_result_is_told(gq: GPUQueue) -> None:
    job = gq.enqueue("work", {"number": 1})
    looked = gq.store.engine.own_file
    while time.monotonic() >= looked.due_s:  # the looks that a quiet client has saved
        gq.counts()
    delete(gq)
    with pytest.raises(FileReplaced):
        job.result(timeout_s=DEADLINE_S)


def test_while_there_is_no_file_none_is_made(gq: GPUQueue) -> None:
    gq.enqueue("work", {"number": 1})
    delete(gq)
    for _ in range(20):
        with pytest.raises(FileReplaced):
            gq.enqueue("work", {"number": 2})
    assert not gq.database.exists()


def test_a_file_that_was_put_in_its_place_is_used_from_the_next_call_on(gq: GPUQueue) -> None:
    gq.enqueue("work", {"number": 1})
    empty = GPUQueue(gq.database.with_name("empty.db"))
    empty.store.close()
    delete(gq)
    os.replace(empty.database, gq.database)
    with pytest.raises(FileReplaced):
        gq.enqueue("work", {"number": 2})
    job = gq.enqueue("work", {"number": 3})
    with GPUQueue(gq.database) as other:
        assert other.job(job.id).refresh().state == "available"
        assert "quite-new" in other.queue_names(), "what the client had ensured in the old file is ensured again"


def test_a_file_that_is_moved_away_and_back_is_the_same(gq: GPUQueue) -> None:
    gq.enqueue("work", {"number": 1})
    gq.database.rename(gq.database.with_suffix(".away"))
    with pytest.raises(FileReplaced):
        gq.counts()
    gq.database.with_suffix(".away").rename(gq.database)
    assert gq.enqueue("work", {"number": 2}).id == 2


def test_every_job_since_the_last_look_is_named(gq: GPUQueue) -> None:
    gq.enqueue("work", {"number": 0})
    own = gq.store.engine.own_file
    while time.monotonic() >= own.due_s:
        gq.counts()
    ids = [job.id for job in gq.enqueue_many([("work", {"number": number}) for number in range(8)])]
    own.stored = list(ids)  # whether a look came between them or not
    delete(gq)
    own.due_s = 0.0
    with pytest.raises(FileReplaced, match=r"Jobs 2, 3, 4, 5, 6 and 3 more \(the last is 9\) may be only .* enqueue them again"):
        gq.counts()


def test_many_uses_look_once_in_a_tenth_of_a_second(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    own = OwnFile(tmp_path / "file", looks_by_itself=True)
    began_s, looks = time.monotonic(), 0
    for _ in range(100_000):
        if time.monotonic() >= own.due_s:
            own.look()
            looks += 1
    assert 1 <= looks <= (time.monotonic() - began_s + LOOKS_SAVED_S) / LOOK_EVERY_S + 1


def test_a_workers_engine_does_not_look_by_itself(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    own = OwnFile(tmp_path / "file", looks_by_itself=False)
    own.look()
    assert time.monotonic() < own.due_s
