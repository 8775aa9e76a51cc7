"""The writer: threads combine their work, a failing one fails alone, a locked file changes nothing, a fork is survived."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuqueue.domain.errors import NotADatabase, StoreBusy, StoreError, StoreFull, UsageError
from gpuqueue.domain.settings import QueueSettings
from gpuqueue.store import open_store
from gpuqueue.store.sqlite.connections import explain
from gpuqueue.store.store import Store
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import fork, forks, wait_until
from tests.history import FOLLOWER, check, events_of
from tests.processes import started
from tests.store.rows import Rows, job_of


def until(condition: Callable[[], object]) -> None:
    wait_until(condition, "the other threads wait")


def pause_queue(name: str) -> Callable[[sqlite3.Connection], str]:
    def work(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO queues (name) VALUES (?)", (name,))
        return name

    return work


class Gathering:
    """Holds the writer until `count` other threads wait behind it, so that the next transaction carries all of theirs."""

    def __init__(self, store: Store, works: list[Callable[[sqlite3.Connection], object]]) -> None:
        self.statements: list[str] = []
        self.results: list[object] = [None] * len(works)
        store.queues.ensure("there")
        assert store.engine.writer.cursor is not None
        connection = store.engine.writer.cursor.connection
        threads = [threading.Thread(target=self._run, args=(store, number, work)) for number, work in enumerate(works)]

        def first(connection: sqlite3.Connection) -> None:
            for thread in threads:
                thread.start()
            until(lambda: len(store.engine.writer._queue) == len(works))
            connection.set_trace_callback(self.statements.append)

        store.engine.writer.run(first)
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        connection.set_trace_callback(None)

    def _run(self, store: Store, number: int, work: Callable[[sqlite3.Connection], object]) -> None:
        try:
            self.results[number] = store.engine.writer.run(work)
        except BaseException as error:
            self.results[number] = error


def names(store: Store) -> set[str]:
    with store.engine.lent() as connection:
        return {name for (name,) in connection.execute("SELECT name FROM queues")} - {"there"}


def test_the_work_of_many_threads_is_one_transaction(store: Store) -> None:
    gathering = Gathering(store, [pause_queue(f"q{number}") for number in range(8)])
    assert gathering.results == [f"q{number}" for number in range(8)]
    assert names(store) == {f"q{number}" for number in range(8)}
    assert gathering.statements.count("BEGIN IMMEDIATE") == 1
    assert gathering.statements.count("SAVEPOINT one_call") == 8


def test_work_that_another_thread_has_just_run_is_not_run_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread sees that its work is not done yet, is slow to ask for its turn, and gets it when all is done."""
    writer, ran, done = store.engine.writer, [], threading.Event()
    store.queues.ensure("there")
    real, asked = writer._turns.ask, []

    def ask(mine: Any) -> Any:
        if threading.current_thread().name == "slow":
            asked.append(mine)
            if len(asked) == 2:
                assert done.wait(DEADLINE_S)
        return real(mine)

    monkeypatch.setattr(writer._turns, "ask", ask)
    slow = threading.Thread(target=lambda: writer.run(lambda _: ran.append("slow")), name="slow")
    quick = threading.Thread(target=lambda: (writer.run(lambda _: ran.append("quick")), done.set()), name="quick")

    def first(_: sqlite3.Connection) -> None:
        slow.start()
        until(lambda: len(writer._queue) == 1)
        quick.start()
        until(lambda: len(writer._queue) == 2)

    writer.run(first)
    for thread in (slow, quick):
        thread.join(DEADLINE_S)
    assert sorted(ran) == ["quick", "slow"]


def test_a_failing_work_fails_alone_and_leaves_nothing(store: Store) -> None:
    def half(connection: sqlite3.Connection) -> None:
        pause_queue("half")(connection)
        raise ValueError("mine alone")

    def wrong(connection: sqlite3.Connection) -> None:
        pause_queue("wrong")(connection)
        connection.execute("INSERT INTO nowhere VALUES (1)")

    results = Gathering(store, [pause_queue("a"), half, pause_queue("b"), wrong, pause_queue("c")]).results
    assert [results[0], results[2], results[4]] == ["a", "b", "c"]
    assert isinstance(results[1], ValueError)
    assert isinstance(results[3], StoreError)
    assert names(store) == {"a", "b", "c"}


def test_a_failing_commit_fails_all_of_them(store: Store) -> None:
    def defer(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.execute("INSERT INTO child VALUES (1)")

    store.engine.writer.run(lambda connection: connection.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
    store.engine.writer.run(
        lambda connection: connection.execute("CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    )
    assert store.engine.writer.cursor is not None
    store.engine.writer.cursor.connection.execute("PRAGMA foreign_keys = ON")
    results = Gathering(store, [pause_queue("a"), defer, pause_queue("b")]).results
    assert all(isinstance(result, StoreError) for result in results), results
    assert names(store) == set()
    assert store.engine.writer.run(pause_queue("after")) == "after"


def test_an_interrupt_hits_only_the_thread_that_writes_and_those_who_wait_are_told(store: Store) -> None:
    waiting: list[threading.Thread] = []
    results: list[object] = []

    def wait_behind() -> None:
        try:
            results.append(store.engine.writer.run(pause_queue("behind")))
        except StoreError as error:
            results.append(error)

    def interrupted(connection: sqlite3.Connection) -> None:
        pause_queue("interrupted")(connection)
        waiting.append(threading.Thread(target=wait_behind))
        waiting[0].start()
        until(lambda: store.engine.writer._queue)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.engine.writer.run(interrupted)
    waiting[0].join(DEADLINE_S)
    assert results == ["behind"]
    assert names(store) == {"behind"}


def test_a_thread_that_writes_is_refused_a_second_write_in_the_middle_of_it(store: Store, rows: Rows) -> None:
    """As a signal handler or a finalizer would do: it would wait for its own thread."""
    rows.queue("work")

    def within(connection: sqlite3.Connection) -> None:
        pause_queue("outer")(connection)
        for write in (lambda: store.engine.writer.run(pause_queue("inner")), rows.enqueue):
            with pytest.raises(UsageError, match=r"already writing to .*jobs\.db: a signal handler"):
                write()

    store.engine.writer.run(within)
    assert names(store) == {"outer", "work"}
    assert rows.enqueue() == 1


def test_what_waits_while_the_writer_is_closed_is_written(store: Store) -> None:
    results: list[object] = []

    def first(connection: sqlite3.Connection) -> None:
        threads.append(threading.Thread(target=lambda: results.append(store.engine.writer.run(pause_queue("behind")))))
        threads.append(threading.Thread(target=store.engine.writer.close))
        for thread in threads:
            thread.start()
        until(lambda: store.engine.writer._queue)

    threads: list[threading.Thread] = []
    store.engine.writer.run(first)
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert results == ["behind"]
    assert names(store) == {"behind"}


def test_a_locked_file_is_busy_and_nothing_is_changed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jobs.db", write_timeout_s=0.05)
    rows = Rows(store)
    other = sqlite3.connect(store.engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    rows.queues["work"] = QueueSettings("work")
    with pytest.raises(StoreBusy, match="nothing was changed, try again"):
        rows.enqueue()
    with pytest.raises(StoreBusy, match="nothing was changed, try again"):
        store.jobs.enqueue_many([])
    other.execute("COMMIT")
    other.close()
    assert rows.one("SELECT count(*) FROM jobs") == 0
    assert rows.enqueue() == 1
    store.close()


def test_a_wait_for_the_lock_ends_when_it_is_free(store: Store, rows: Rows) -> None:
    rows.queue("work")
    other = sqlite3.connect(store.engine.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(rows.enqueue()))
    thread.start()
    assert not found
    other.execute("COMMIT")
    thread.join(DEADLINE_S)
    other.close()
    assert found == [1]


def test_readers_see_the_last_commit_while_another_writes(store: Store, rows: Rows) -> None:
    job_id = rows.enqueue()
    other = sqlite3.connect(store.engine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE jobs SET task = 'changed'")
    assert job_of(store, job_id).task == "app.task"
    other.execute("COMMIT")
    other.close()
    assert job_of(store, job_id).task == "changed"


def test_a_snapshot_belongs_to_one_moment(store: Store, rows: Rows) -> None:
    rows.enqueue()
    with store.snapshot() as reads:
        first = reads.counts()
        rows.enqueue()
        assert reads.counts() == first
    assert rows.one("SELECT count(*) FROM jobs") == 2


def test_many_threads_and_processes_write_without_loss(store: Store, rows: Rows) -> None:
    rows.queue("work")
    store.followers.add(FOLLOWER)
    code = (
        "import sys; from pathlib import Path; from gpuqueue.store import open_store; from gpuqueue.domain.job import NewJob\n"
        "store = open_store(Path(sys.argv[1]), write_timeout_s=120)\n"
        "for _ in range(100): store.jobs.enqueue(NewJob('work', 't', '{}', 1))\n"
        "store.close()"
    )
    command = [sys.executable, "-c", code, str(store.engine.path)]
    with started(command) as first, started(command) as second:
        threads = [threading.Thread(target=lambda: [rows.enqueue() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [process.wait(DEADLINE_S) for process in (first, second)] == [0, 0]
    assert rows.one("SELECT count(*) FROM jobs") == 400
    assert rows.one("SELECT max(id) FROM jobs") == 400
    with store.engine.lent() as connection:
        check(events_of(connection), connection, unfinished=range(1, 401))


def test_a_snapshot_that_cannot_begin_gives_its_connection_back(store: Store, rows: Rows) -> None:
    rows.enqueue()
    with store.engine.lent() as connection:
        connection.execute("BEGIN")  # a transaction within a transaction cannot begin
        store.engine._read_pool._idle.append(connection)
        with pytest.raises(StoreError, match="within a transaction"), store.snapshot():
            raise AssertionError("it began")
        assert store.engine._read_pool._idle.pop() is connection
    with store.snapshot() as reads:
        assert reads.counts() == {"work": {"available": 1}}
    assert not store.engine._read_pool._lent()


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_and_writes_through_the_same_store(store: Store, rows: Rows) -> None:
    store.followers.add(FOLLOWER)
    mine = rows.enqueue()
    pid = fork()
    if pid == 0:
        code = 1
        try:
            assert job_of(store, mine).task == "app.task"
            assert store.engine.writer.cursor is None
            for _ in range(20):
                rows.enqueue()
            code = 0
        finally:
            os._exit(code)
    for _ in range(20):
        rows.enqueue()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert rows.one("SELECT count(*) FROM jobs") == 41
    assert rows.one("PRAGMA integrity_check") == "ok"
    other = open_store(store.engine.path)
    other.close()
    assert rows.enqueue() == 42
    assert rows.one("SELECT count(*) FROM jobs") == 42
    with store.engine.lent() as connection:
        check(events_of(connection), connection, unfinished=range(1, 43))


_at_fork: list[threading.Event] = []  # what a test sets when its process is about to fork


def _set_at_fork() -> None:
    while _at_fork:
        _at_fork.pop().set()


if hasattr(os, "fork"):
    os.register_at_fork(before=_set_at_fork)  # called before the store's own, which was registered earlier


def fork_beside(work: Callable[[threading.Event, threading.Event], object]) -> tuple[int, threading.Thread]:
    """Fork while a thread does work that sets its first event and waits for its second, which is set when the fork begins."""
    inside, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(inside, may_end))
    thread.start()
    assert inside.wait(DEADLINE_S)
    _at_fork.append(may_end)
    return fork(), thread


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_the_reader_of_another_thread(store: Store, rows: Rows) -> None:
    # A mutex of SQLite's own that a thread holds while the process forks is held in the child for ever.
    mine = rows.enqueue()
    read_to_its_end: list[bool] = []

    def read(inside: threading.Event, may_end: threading.Event) -> None:
        with store.engine.lent():
            inside.set()
            assert may_end.wait(DEADLINE_S)
            read_to_its_end.append(True)

    pid, thread = fork_beside(read)
    if pid == 0:
        code = 1
        try:
            assert read_to_its_end
            assert job_of(store, mine).task == "app.task"
            assert store.changed()
            code = 0
        finally:
            os._exit(code)
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert job_of(store, mine).task == "app.task"
    assert store.changed()


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        (sqlite3.SQLITE_BUSY, StoreBusy, "try again"),
        (sqlite3.SQLITE_LOCKED, StoreBusy, "try again"),
        (sqlite3.SQLITE_FULL, StoreFull, "free some space"),
        (sqlite3.SQLITE_CORRUPT, NotADatabase, "give another path"),
        (sqlite3.SQLITE_IOERR, StoreError, "check the disk"),
    ],
)
def test_an_error_of_sqlite_says_what_to_do(code: int, kind: type[StoreError], hint: str) -> None:
    error = sqlite3.OperationalError("oops")
    error.sqlite_errorcode = code
    found = explain(error, Path("/data/jobs.db"))
    assert type(found) is kind
    assert hint in str(found)
    assert "/data/jobs.db" in str(found)


def test_a_full_disk_is_told_and_nothing_is_stored(store: Store, rows: Rows) -> None:
    rows.enqueue()
    assert store.engine.writer.cursor is not None
    connection = store.engine.writer.cursor.connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull, match="no space left"):
        for _ in range(100):
            rows.enqueue(arguments='{"x": "' + "y" * 9000 + '"}')
    assert rows.one("SELECT count(*) FROM payloads") == rows.one("SELECT count(*) FROM jobs WHERE arguments IS NULL")
    connection.execute("PRAGMA max_page_count = 1000000")
    rows.enqueue(arguments='{"x": "' + "y" * 9000 + '"}')


@forks
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_for_the_transaction_of_another_thread_whose_lock_the_child_would_wait_for(store: Store, rows: Rows) -> None:
    def write(inside: threading.Event, may_end: threading.Event) -> None:
        def work(connection: sqlite3.Connection) -> None:
            inside.set()
            assert may_end.wait(DEADLINE_S)

        store.engine.writer.run(work)

    pid, thread = fork_beside(write)
    if pid == 0:
        code = 1
        try:
            rows.enqueue()
            code = 0
        finally:
            os._exit(code)
    thread.join()
    rows.enqueue()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert rows.one("SELECT count(*) FROM jobs") == 2


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
def test_work_whose_thread_was_interrupted_while_it_waited_is_never_run(store: Store) -> None:
    """And it does not stay behind, where it would keep inserts from their short way."""
    writer = store.engine.writer
    inside, may_end, ended = (threading.Event() for _ in range(3))

    def first(_: sqlite3.Connection) -> None:
        inside.set()
        assert may_end.wait(DEADLINE_S)

    def hold() -> None:
        writer.run(first)
        ended.set()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    threading.Thread(target=hold).start()
    assert inside.wait(DEADLINE_S)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        threading.Thread(
            target=lambda: (until(lambda: writer._queue), signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
        ).start()
        with pytest.raises(KeyboardInterrupt):
            writer.run(pause_queue("interrupted"))
    finally:
        signal.signal(signal.SIGINT, before)
    may_end.set()
    assert ended.wait(DEADLINE_S)
    assert writer.run(pause_queue("after")) == "after"
    assert not writer._queue
    assert names(store) == {"after"}


def test_work_whose_thread_is_interrupted_after_another_took_it_over_is_not_begun(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, main = store.engine.writer, threading.current_thread()
    inside, is_out = threading.Event(), threading.Event()
    real, asked = writer._turns.ask, []

    def second(connection: sqlite3.Connection) -> None:
        inside.set()
        assert is_out.wait(DEADLINE_S)
        pause_queue("second")(connection)

    taking_over = threading.Thread(target=lambda: writer.run(second))

    def ask(mine: Any) -> Any:
        if threading.current_thread() is main:
            asked.append(mine)
            if len(asked) == 2:
                taking_over.start()
                assert inside.wait(DEADLINE_S)
                raise KeyboardInterrupt
        return real(mine)

    monkeypatch.setattr(writer._turns, "ask", ask)
    held = threading.Event()

    def first(_: sqlite3.Connection) -> None:
        held.set()
        until(lambda: writer._queue)

    holding = threading.Thread(target=lambda: writer.run(first))
    holding.start()
    assert held.wait(DEADLINE_S)
    with pytest.raises(KeyboardInterrupt):
        writer.run(pause_queue("interrupted"))
    is_out.set()
    for thread in (holding, taking_over):
        thread.join(DEADLINE_S)
    assert names(store) == {"second"}


def test_the_finalizer_of_a_store_waits_for_no_other_thread(tmp_path: Path) -> None:
    store = open_store(tmp_path / "jobs.db")
    writer, finalize = store.engine.writer, store.__del__
    inside, may_end = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        inside.set()
        assert may_end.wait(DEADLINE_S)
        pause_queue("mine")(connection)

    writing = threading.Thread(target=lambda: writer.run(work))
    writing.start()
    assert inside.wait(DEADLINE_S)
    finalizing = threading.Thread(target=finalize, daemon=True)
    finalizing.start()
    finalizing.join(DEADLINE_S)
    is_over = not finalizing.is_alive()
    may_end.set()
    writing.join(DEADLINE_S)
    assert is_over
    assert names(store) == {"mine"}
    store.close()
