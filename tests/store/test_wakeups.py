"""A wakeup wakes who listens, forgets who died, and a ring that is lost costs no more than the slow poll."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gpuqueue.domain.outcomes import Report
from gpuqueue.store import open_store
from gpuqueue.store.database import back_up
from gpuqueue.store.store import Store
from gpuqueue.store.wakeups import Listener, Wakeups, runtime_dir
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import fork, forks
from tests.store.rows import Rows


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's own folders are too deep for a socket's path.
    with tempfile.TemporaryDirectory(prefix="wakeups-") as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        yield runtime_dir(tmp_path / "jobs.db")


def test_a_ring_wakes_every_worker_that_listens(directory: Path) -> None:
    wakeups = Wakeups(directory)
    with Listener(directory, "workers", "a") as first, Listener(directory, "workers", "b") as second:
        wakeups.ring_workers()
        assert first.wait(DEADLINE_S)
        assert second.wait(DEADLINE_S)
        assert not first.wait(0.001)
    wakeups.close()


def test_a_ring_for_a_job_wakes_only_those_that_wait_for_it(directory: Path) -> None:
    wakeups = Wakeups(directory)
    with (
        Listener.for_job(directory, 1) as one,
        Listener.for_job(directory, 11) as eleven,
        Listener.for_job(directory, 1) as again,
    ):
        wakeups.ring_waiters([1, 7])
        assert one.wait(DEADLINE_S)
        assert again.wait(DEADLINE_S)
        assert not eleven.wait(0.001)
    wakeups.close()


def test_many_rings_count_as_one(directory: Path) -> None:
    wakeups = Wakeups(directory)
    with Listener(directory, "workers", "a") as listener:
        for _ in range(50):
            wakeups.ring_workers()
        assert listener.wait(DEADLINE_S)
        assert not listener.wait(0.001)
    wakeups.close()


def test_a_ring_never_blocks_on_a_worker_that_does_not_listen(directory: Path) -> None:
    wakeups = Wakeups(directory)
    with Listener(directory, "workers", "a"):
        for _ in range(5000):  # far more than a socket holds
            wakeups.ring_workers()
    wakeups.close()


@forks
def test_the_socket_of_a_dead_owner_is_removed_and_a_closed_listener_leaves_none(directory: Path) -> None:
    wakeups = Wakeups(directory)
    pid = fork()
    if pid == 0:
        Listener(directory, "workers", "dead")
        os._exit(0)
    os.waitpid(pid, 0)
    path = directory / "workers" / "dead"
    assert path.exists()
    wakeups.ring_workers()
    assert not path.exists()
    with Listener(directory, "workers", "alive"):
        assert (directory / "workers" / "alive").exists()
    assert not (directory / "workers" / "alive").exists()
    wakeups.ring_workers()
    wakeups.close()


def test_a_listener_that_came_in_the_same_tick_as_another_is_rung_too(directory: Path) -> None:
    """A folder's time has a resolution of milliseconds; a second socket may leave it as the first did."""
    wakeups = Wakeups(directory)
    folder = directory / "waiters"
    tick_ns = time.time_ns() + 60 * 10**9
    with Listener.for_job(directory, 1) as first:
        os.utime(folder, ns=(tick_ns, tick_ns))
        wakeups.ring_waiters([1])
        assert first.wait(DEADLINE_S)
        with Listener.for_job(directory, 1) as second:
            os.utime(folder, ns=(tick_ns, tick_ns))
            wakeups.ring_waiters([1])
            assert second.wait(DEADLINE_S)
    wakeups.close()


def test_a_worker_that_came_after_a_burst_is_rung_once_the_listing_is_old(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakeups = Wakeups(directory)
    clock = [1000.0]
    monkeypatch.setattr("gpuqueue.store.wakeups.time.monotonic", lambda: clock[0])
    wakeups.ring_workers()
    with Listener(directory, "workers", "new") as listener:
        clock[0] += 1
        wakeups.ring_workers()
        assert listener.wait(DEADLINE_S)
    wakeups.close()


def test_a_thread_wakes_its_own_listener(directory: Path) -> None:
    with Listener(directory, "workers", "a") as listener:
        thread = threading.Thread(target=listener.ring)
        thread.start()
        assert listener.wait(DEADLINE_S)
        thread.join()


def test_a_listener_without_a_socket_only_polls_and_leaks_nothing(directory: Path) -> None:
    listener = Listener(directory, "workers", "x" * 200)  # longer than a socket's path may be
    assert listener.wait(0.001)
    listener.ring()
    listener.close()


def test_the_runtime_directory_is_private_short_and_the_same_for_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (tmp_path / "link.db").symlink_to(deep / "jobs.db")
    short = tmp_path / "run"
    short.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    path = runtime_dir(deep / "jobs.db")
    assert path == runtime_dir(tmp_path / "link.db") == runtime_dir(deep / ".." / ("e" * 100) / "jobs.db")
    assert len(os.fsencode(path.name)) == 16
    assert path.stat().st_mode & 0o777 == 0o700
    assert runtime_dir(tmp_path / "other.db") != path


@pytest.fixture
def folders() -> Iterator[Callable[[], str]]:
    """Makes folders whose paths are short enough for a socket."""
    with ExitStack() as leaving:
        yield lambda: leaving.enter_context(tempfile.TemporaryDirectory(prefix="run-"))


def test_processes_of_one_user_with_different_runtime_folders_wake_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: Callable[[], str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", folders())
    one = open_store(tmp_path / "jobs.db")
    monkeypatch.setenv("XDG_RUNTIME_DIR", folders())
    other = open_store(tmp_path / "jobs.db")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    third = open_store(tmp_path / "jobs.db")
    stores = (one, other, third)
    for sender in stores:
        for receiver in stores:
            with Listener(receiver.runtime_dir, "workers", "me") as worker, Listener.for_job(receiver.runtime_dir, 7) as waiter:
                sender.wakeups._believed_until_s = 0.0  # a burst's listing would be a little older
                sender.wakeups.ring_workers()
                sender.wakeups.ring_waiters([7])
                assert worker.wait(DEADLINE_S)
                assert waiter.wait(DEADLINE_S)
    for store in stores:
        store.close()


def test_a_runtime_folder_that_is_gone_is_replaced_by_one_that_all_later_processes_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: Callable[[], str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="run-") as gone:
        monkeypatch.setenv("XDG_RUNTIME_DIR", gone)
        open_store(tmp_path / "jobs.db").close()
    found = set()
    for _ in range(2):
        monkeypatch.setenv("XDG_RUNTIME_DIR", folders())
        store = open_store(tmp_path / "jobs.db")
        found.add(store.runtime_dir)
        store.close()
    assert len(found) == 1
    assert not str(found.pop()).startswith(gone)


def test_of_two_that_choose_a_folder_at_once_both_use_that_of_the_first(store: Store) -> None:
    agree = store.workers.agree_on_runtime_base
    assert agree("far", 7, "/one", instead_of=None) == "/one"
    assert agree("far", 7, "/two", instead_of=None) == "/one"
    assert agree("far", 7, "/two", instead_of="/one") == "/two"
    assert agree("far", 8, "/three", instead_of=None) == "/three", "another user"


def test_a_copy_of_a_file_has_a_runtime_directory_of_its_own(tmp_path: Path) -> None:
    first = open_store(tmp_path / "jobs.db")
    back_up(tmp_path / "jobs.db", tmp_path / "copy.db", overwrite=False)
    second = open_store(tmp_path / "copy.db")
    assert first.runtime_dir.parent == second.runtime_dir.parent
    assert first.runtime_dir != second.runtime_dir
    first.close()
    second.close()


def test_a_queue_opens_though_somebody_writes_who_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(tmp_path / "jobs.db")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")

    def while_writing(_connection: object) -> None:
        second = open_store(tmp_path / "jobs.db")
        assert second.runtime_dir == first.runtime_dir
        second.close()

    first.engine.writer.run(while_writing)
    first.close()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    runtime_dir(tmp_path / "jobs.db")
    monkeypatch.setattr("os.getuid", lambda: 4242)
    with pytest.raises(PermissionError, match="belongs to another user"):
        runtime_dir(tmp_path / "jobs.db")


def test_the_store_rings_after_what_somebody_waits_for(store: Store, rows: Rows) -> None:
    with Listener(store.runtime_dir, "workers", "me") as worker:
        first = rows.enqueue()
        assert worker.wait(DEADLINE_S), "a new job rings the workers"
        with Listener.for_job(store.runtime_dir, first) as waiter:
            lease = rows.claim_one()
            store.attempts.report([Report(first, lease.lease, "text")])
            assert waiter.wait(DEADLINE_S), "output rings who waits"
            rows.complete(lease)
            assert waiter.wait(DEADLINE_S), "the end rings who waits"
