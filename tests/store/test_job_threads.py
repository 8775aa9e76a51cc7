"""What a worker's threads run and wait for is read by others, as long as it can be trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gpuqueue.domain.explanation import JobThread, JobThreads
from gpuqueue.store.job_threads import Waits, forget, path_of, threads_of
from gpuqueue.store.liveness import Liveness
from tests.conftest import fork, forks


@pytest.fixture
def waits(tmp_path: Path) -> Iterator[Waits]:
    """A worker with two threads, and one of a device."""
    waits = Waits(tmp_path, "w", pool=2, devices=1)
    yield waits
    waits.close()


@pytest.fixture
def liveness(tmp_path: Path) -> Iterator[Liveness]:
    """The same worker, which also runs coroutines."""
    liveness = Liveness(tmp_path, "w", slots=3 + 2)
    yield liveness
    liveness.close()


def test_each_thread_shows_its_job_and_what_that_waits_for(waits: Waits, liveness: Liveness, tmp_path: Path) -> None:
    for slot, job_id in enumerate((11, 0, -13, 14)):
        liveness.executes(slot, job_id)
    waits.publish(0, 11, 2**40)
    assert threads_of(tmp_path, "w") == JobThreads((JobThread(11, 2**40), JobThread(0)), (JobThread(13),))
    waits.publish(0, 11, 0)
    assert threads_of(tmp_path, "w") == JobThreads((JobThread(11), JobThread(0)), (JobThread(13),))


def test_what_a_job_waited_for_that_has_ended_is_not_taken_for_the_next_one(
    waits: Waits, liveness: Liveness, tmp_path: Path
) -> None:
    liveness.executes(1, 11)
    waits.publish(1, 11, 12)
    liveness.executes(1, 13)
    threads = threads_of(tmp_path, "w")
    assert threads is not None
    assert threads.pool == (JobThread(0), JobThread(13))


def test_threads_that_cannot_be_seen_are_not_known(tmp_path: Path) -> None:
    assert threads_of(tmp_path / "another container's", "w") is None
    with closing(Liveness(tmp_path, "old", slots=1)):
        assert threads_of(tmp_path, "old") is None, "a worker of an older version has no such file"
        for content in (b"", b"x", b"x" * 16, b"x" * 32):
            path_of(tmp_path, "old").write_bytes(content)
            assert threads_of(tmp_path, "old") is None


def test_threads_whose_worker_has_ended_are_not_known(waits: Waits, tmp_path: Path) -> None:
    assert path_of(tmp_path, "w").exists()
    assert threads_of(tmp_path, "w") is None


def test_a_thread_that_is_left_behind_changes_nothing(tmp_path: Path) -> None:
    waits, liveness = Waits(tmp_path, "w", pool=1, devices=0), Liveness(tmp_path, "w", slots=1)
    waits.close()
    liveness.close()
    waits.publish(0, 11, 0)
    liveness.executes(0, 0)


def test_no_file_is_left_behind(tmp_path: Path) -> None:
    for end in (Waits.close, lambda waits: forget(tmp_path, "w")):
        end(Waits(tmp_path, "w", pool=1, devices=0))
        assert not path_of(tmp_path, "w").exists()


@forks
def test_a_child_does_not_write_for_its_parent(waits: Waits, liveness: Liveness, tmp_path: Path) -> None:
    liveness.executes(0, 11)
    pid = fork()
    if pid == 0:
        liveness.executes(0, 0)
        waits.publish(0, 11, 12)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    threads = threads_of(tmp_path, "w")
    assert threads is not None
    assert threads.pool[0] == JobThread(11)
