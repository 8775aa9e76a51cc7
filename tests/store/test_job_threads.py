"""What a worker's threads run and wait for is read by others, as long as it can be trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuqueue.domain.explanation import JobThread, JobThreads
from gpuqueue.store.job_threads import Waits, forget, path_of, threads_of
from gpuqueue.store.liveness import Liveness
from tests.conftest import fork, forks


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Liveness, Waits]]:
    """A worker with two threads, one of a device, and one place for a coroutine."""
    liveness, waits = Liveness(tmp_path, "w", slots=4), Waits(tmp_path, "w", pool=2, devices=1)
    yield liveness, waits
    liveness.close()
    waits.close()


def test_each_thread_shows_its_job_and_what_that_waits_for(files: tuple[Liveness, Waits], tmp_path: Path) -> None:
    liveness, waits = files
    for slot, job_id in enumerate((11, 0, 13, 14)):
        liveness.executes(slot, job_id)
    waits.publish(0, 11, 2**40)
    assert threads_of(tmp_path, "w") == JobThreads((JobThread(11, 2**40), JobThread(0)), (JobThread(13),))
    waits.publish(0, 11, 0)
    assert threads_of(tmp_path, "w") == JobThreads((JobThread(11), JobThread(0)), (JobThread(13),))


def test_what_a_job_waited_for_that_has_ended_is_not_taken_for_the_next_one(
    files: tuple[Liveness, Waits], tmp_path: Path
) -> None:
    liveness, waits = files
    liveness.executes(1, 11)
    waits.publish(1, 11, 12)
    liveness.executes(1, 13)
    threads = threads_of(tmp_path, "w")
    assert threads is not None
    assert threads.pool == (JobThread(0), JobThread(13))


def test_threads_that_cannot_be_seen_are_not_known(tmp_path: Path) -> None:
    assert threads_of(tmp_path / "another container's", "w") is None
    liveness = Liveness(tmp_path, "old", slots=2)
    assert threads_of(tmp_path, "old") is None, "a worker of an older version has no such file"
    path_of(tmp_path, "old").write_bytes(b"x")
    assert threads_of(tmp_path, "old") is None
    liveness.close()


def test_no_file_is_left_behind(tmp_path: Path) -> None:
    for end in (Waits.close, lambda waits: forget(tmp_path, "w")):
        end(Waits(tmp_path, "w", pool=1, devices=0))
        assert not path_of(tmp_path, "w").exists()


@forks
def test_a_child_does_not_write_for_its_parent(files: tuple[Liveness, Waits], tmp_path: Path) -> None:
    liveness, waits = files
    liveness.executes(0, 11)
    pid = fork()
    if pid == 0:
        waits.publish(0, 11, 12)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    threads = threads_of(tmp_path, "w")
    assert threads is not None
    assert threads.pool[0] == JobThread(11)
