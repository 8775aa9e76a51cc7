"""Forks: nothing that a child stores is lost, whatever its parent has open; what cannot be safe is refused, and nothing hangs."""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from gpuqueue import ForkedWithOpenFile, GPUQueue
from gpuqueue.store import forks as at_fork
from gpuqueue.store import open_store
from gpuqueue.testing.queues import QueueMaker
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import forks, wait_until
from tests.processes import Child

pytestmark = [forks, pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once on what will not end: a fork that waits for what ends says so by an event."""
    monkeypatch.setattr(at_fork, "LONGEST_WAIT_S", 0.05)


@pytest.fixture
def gq(make_queue: QueueMaker) -> GPUQueue:
    made = make_queue()
    made.task(name="noop")(lambda number: None)
    made.enqueue("noop", {"number": 0})
    return made


def numbers(database: Path) -> list[int]:
    """The jobs that a process sees that was not there before."""
    connection = sqlite3.connect(database)
    found = [number for (number,) in connection.execute("SELECT json_extract(arguments, '$.number') FROM jobs ORDER BY id")]
    connection.close()
    return found


def store_jobs(gq: GPUQueue, *found: int) -> Callable[[], list[int]]:
    return lambda: [gq.enqueue("noop", {"number": number}).id for number in found]


def test_what_a_child_stores_is_there_after_its_parent_has_closed_the_file(gq: GPUQueue) -> None:
    gq.counts()
    assert gq.store.changed()
    child = Child(store_jobs(gq, 1, 2, 3))
    gq.close()
    assert child.told() == "[2, 3, 4]"
    assert numbers(gq.database) == [0, 1, 2, 3]


def test_a_parent_and_its_child_write_at_the_same_time(gq: GPUQueue) -> None:
    child = Child(store_jobs(gq, 1, 2, 3))
    store_jobs(gq, 4, 5, 6)()
    child.told()
    store_jobs(gq, 7)()
    assert sorted(numbers(gq.database)) == list(range(8))


def test_a_child_of_a_child_uses_the_same_queue(gq: GPUQueue) -> None:
    def both() -> str:
        first = store_jobs(gq, 1)()
        second = Child(store_jobs(gq, 2)).told()
        return f"{first} {second}"

    assert Child(both).told() == "'[2] [3]'"
    assert numbers(gq.database) == [0, 1, 2]


# --- what cannot be closed ---


@contextmanager
def applications_own(gq: GPUQueue) -> Iterator[None]:
    connection = sqlite3.connect(gq.database)
    connection.execute("SELECT count(*) FROM jobs").fetchone()
    yield
    connection.close()


@contextmanager
def sqlalchemy_transaction(gq: GPUQueue) -> Iterator[None]:
    from sqlalchemy import create_engine, text

    engine = create_engine(f"sqlite:///{gq.database}")
    with engine.begin() as connection:
        connection.execute(text("SELECT count(*) FROM jobs")).fetchone()
        yield
    engine.dispose()


@contextmanager
def read_around_the_fork(gq: GPUQueue) -> Iterator[None]:
    with gq.store.snapshot() as reads:
        reads.job(1)
        yield


@contextmanager
def in_another_thread(use: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    inside, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=use, args=(inside, may_end))
    thread.start()
    assert inside.wait(DEADLINE_S)
    yield
    may_end.set()
    thread.join()


def reading_thread(gq: GPUQueue) -> AbstractContextManager[None]:
    def use(inside: threading.Event, may_end: threading.Event) -> None:
        with gq.read():
            inside.set()
            assert may_end.wait(DEADLINE_S)

    return in_another_thread(use)


def writing_thread(gq: GPUQueue) -> AbstractContextManager[None]:
    def use(inside: threading.Event, may_end: threading.Event) -> None:
        def work(connection: sqlite3.Connection) -> None:
            inside.set()
            assert may_end.wait(DEADLINE_S)

        gq.store.engine.writer.run(work)

    return in_another_thread(use)


@contextmanager
def opening_thread(gq: GPUQueue) -> Iterator[None]:
    other = gq.database.with_name("other.db")
    lock = sqlite3.connect(other, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")  # so that opening it waits
    thread = threading.Thread(target=lambda: open_store(other).close())
    thread.start()
    wait_until(at_fork._threads_at_work, "the thread opens the file")
    yield
    lock.execute("COMMIT")
    lock.close()
    thread.join()


LEFT_OPEN = {
    applications_own: "a connection that gpuqueue did not open had it open",
    sqlalchemy_transaction: "a connection that gpuqueue did not open had it open",
    read_around_the_fork: "a read of the queue, inside which it was forked, had it open",
    reading_thread: "a read of the queue in another thread, which took longer than 0.05 s, had it open",
    writing_thread: "a write to the queue in another thread, which took longer than 0.05 s, had it open",
    opening_thread: "another thread was opening a database",
}


def another(gq: GPUQueue) -> Callable[[], object]:
    """A queue object that is made in the child."""

    def use() -> object:
        with GPUQueue(gq.database, discover_plugins=False) as made:
            return made.counts()

    return use


USES: dict[str, Callable[[GPUQueue], Callable[[], object]]] = {
    "enqueue": lambda gq: store_jobs(gq, 1),
    "enqueue_many": lambda gq: lambda: gq.enqueue_many([("noop", {"number": 1})]),
    "counts": lambda gq: gq.counts,
    "snapshot": lambda gq: lambda: gq.job(1),
    "changed": lambda gq: lambda: gq.store.changed(),
    "another queue object": another,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("left_open", LEFT_OPEN, ids=lambda function: function.__name__)
def test_a_child_that_was_born_with_the_file_open_is_told_so(
    gq: GPUQueue, left_open: Callable[[GPUQueue], AbstractContextManager[None]], use: str
) -> None:
    with left_open(gq):
        told = Child(USES[use](gq)).told()
    assert told.startswith(f"ForkedWithOpenFile: cannot use {gq.database} in this process: it was forked while "), told
    assert LEFT_OPEN[left_open] in told
    assert "before the fork" in told
    store_jobs(gq, 2)()
    assert numbers(gq.database) == [0, 2]


def test_a_job_in_a_connection_that_the_child_was_born_with_is_refused(gq: GPUQueue) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{gq.database}")
    with engine.begin() as connection:
        task = gq.tasks["noop"].using(connection=connection)
        task.enqueue(number=1)
        assert Child(lambda: task.enqueue(number=2)).told().startswith("ForkedWithOpenFile")
    engine.dispose()
    assert numbers(gq.database) == [0, 1]


def test_a_child_that_closes_what_it_was_born_with_uses_the_file(gq: GPUQueue) -> None:
    own = sqlite3.connect(gq.database)
    own.execute("SELECT count(*) FROM jobs").fetchone()

    def close_and_store() -> object:
        own.close()
        return store_jobs(gq, 1)(), gq.counts(), store_jobs(gq, 2)()

    assert "ForkedWithOpenFile" not in Child(close_and_store).told()
    assert numbers(gq.database) == [0, 1, 2]
    own.close()


def test_a_fork_in_the_middle_of_a_write_leaves_it_to_the_parent(gq: GPUQueue) -> None:
    told: list[str] = []

    def work(connection: sqlite3.Connection) -> None:
        told.append(Child(store_jobs(gq, 1)).told())

    gq.store.engine.writer.run(work)
    assert "a write to the queue, inside which it was forked, had it open" in told[0]
    store_jobs(gq, 2)()
    assert numbers(gq.database) == [0, 2]


def test_a_fork_waits_for_a_thread_that_opens_the_file(gq: GPUQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_fork, "LONGEST_WAIT_S", DEADLINE_S)
    path = gq.database.with_name("other.db")
    with GPUQueue(path, discover_plugins=False) as other:
        inside = threading.Event()
        opened = other.open_store

        def slowly() -> object:
            inside.set()
            wait_until(lambda: at_fork.ongoing, "the fork waits")
            return opened()

        thread = threading.Thread(target=lambda: at_fork.at_work(slowly).close())  # type: ignore[attr-defined]
        thread.start()
        assert inside.wait(DEADLINE_S)
        assert Child(other.counts).told() == "{}"
        thread.join()


def test_a_queue_that_a_thread_was_just_opening_is_opened_anew_by_the_child(gq: GPUQueue) -> None:
    """The child has the lock of the thread that does not exist there."""
    other = GPUQueue(gq.database, discover_plugins=False)
    with other._opening.setdefault(os.getpid(), threading.RLock()):

        def use() -> None:
            told.append(Child(other.counts).told())

        told: list[str] = []
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(DEADLINE_S)
    assert told == ["{'default': {'available': 1}}"]


# --- a server that forks without telling Python ---


def unannounced() -> int:
    pid: int = ctypes.PyDLL(None).fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(DEADLINE_S))
    return pid


@pytest.mark.parametrize("use", USES)
def test_a_child_that_nobody_announced_is_told_too(gq: GPUQueue, use: str) -> None:
    told = Child(USES[use](gq), forking=unannounced).told()
    assert told.startswith("ForkedWithOpenFile"), told
    store_jobs(gq, 2)()
    assert numbers(gq.database) == [0, 2]


def test_a_child_that_nobody_announced_uses_a_file_that_was_closed(gq: GPUQueue) -> None:
    gq.close()
    assert Child(store_jobs(gq, 1, 2), forking=unannounced).told() == "[2, 3]"
    store_jobs(gq, 3)()
    assert numbers(gq.database) == [0, 1, 2, 3]


def test_the_error_goes_through_a_pipe_of_processes(gq: GPUQueue) -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ForkedWithOpenFile("/a/b.db", "somebody had it open")))
    assert (error.path, error.reason) == ("/a/b.db", "somebody had it open")
