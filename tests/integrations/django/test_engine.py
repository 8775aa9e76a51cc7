"""The ENGINE: its connections wait for the write lock in line, whatever begins with it, and give up when they are told to."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, OperationalError, connection, connections, transaction

from gpuqueue import Worker
from gpuqueue.integrations.django import DjangoQueue, job_of
from gpuqueue.integrations.django.sqlite3.line import Line
from gpuqueue.integrations.django.tasks_api import TaskResultDoesNotExist
from gpuqueue.testing.waiting import DEADLINE_S
from tests.conftest import fork, forks
from tests.integrations.django import tasks
from tests.integrations.django.conftest import UseDatabase
from tests.processes import started

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("COMMIT")
"""


@pytest.fixture
def orders(use_database: UseDatabase) -> Iterator[None]:
    """A database with the ENGINE and one table."""
    use_database()
    run("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    return


def run(statement: str, values: Any = None, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        return cursor.execute(statement, values).fetchall()


def count() -> int:
    ((found,),) = run("SELECT count(*) FROM orders")
    return int(found)


@contextmanager
def held_by_another_process() -> Iterator[Callable[[], None]]:
    """Let another process hold the write lock until the block ends, or it is let go."""
    path = str(connection.settings_dict["NAME"])
    with started([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        stdin = holder.stdin

        def let_go() -> None:
            stdin.write("go\n")
            stdin.flush()

        yield let_go
        if not stdin.closed:
            stdin.close()
        holder.wait(DEADLINE_S)


WRITES: list[Callable[[], Any]] = [
    lambda: run("INSERT INTO orders (name) VALUES (%s)", ["a"]),
    lambda: run("WITH made (name) AS (SELECT 'a') INSERT INTO orders (name) SELECT name FROM made"),
    lambda: connection.cursor().executemany("INSERT INTO orders (name) VALUES (%s)", [["a"]]),
    lambda: connection.cursor().executescript("INSERT INTO orders (name) VALUES ('a');"),
    lambda: in_transaction(),
    lambda: by_hand(),
]


def in_transaction() -> None:
    with transaction.atomic():
        run("INSERT INTO orders (name) VALUES (%s)", ["a"])


def by_hand() -> None:
    transaction.set_autocommit(False)
    try:
        run("SELECT 1")
        run("INSERT INTO orders (name) VALUES (%s)", ["a"])
        transaction.commit()
    finally:
        transaction.set_autocommit(True)


@pytest.mark.parametrize("write", WRITES, ids=["insert", "with", "many", "script", "atomic", "by hand"])
def test_whatever_begins_to_write_waits_until_the_lock_is_free(orders: None, write: Callable[[], None]) -> None:
    ended = threading.Event()

    def write_and_close() -> None:
        write()
        connection.close()
        ended.set()

    with held_by_another_process() as let_go:
        waiting = threading.Thread(target=write_and_close)
        waiting.start()
        assert not ended.wait(0.1)
        assert count() == 0, "reading waits for nobody"
        let_go()
        assert ended.wait(DEADLINE_S)
        waiting.join()
    assert count() == 1


def test_a_wait_ends_with_djangos_error_when_its_time_is_over(use_database: UseDatabase) -> None:
    use_database(timeout=0.05)
    run("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    with held_by_another_process():
        for write in (WRITES[0], WRITES[2], WRITES[4]):
            with pytest.raises(OperationalError, match="database is locked"):
                write()
        errors = []

        def wait_too() -> None:
            try:
                WRITES[4]()
            except OperationalError as error:
                errors.append(str(error))
            connection.close()

        threads = [threading.Thread(target=wait_too) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert len(errors) == 4
    run("INSERT INTO orders (name) VALUES ('later')")
    assert count() == 1


def test_who_came_first_is_served_first(tmp_path: Path) -> None:
    line = Line(str(tmp_path / "app.db"))
    served: list[int] = []
    first_has_it, first_may_go = threading.Event(), threading.Event()

    def hold() -> None:
        first_has_it.set()
        assert first_may_go.wait(DEADLINE_S)

    threads = [threading.Thread(target=line.wait, args=[hold, 30.0])]
    threads[0].start()
    assert first_has_it.wait(DEADLINE_S)
    for number in range(5):
        threads.append(threading.Thread(target=line.wait, args=[lambda number=number: served.append(number), 30.0]))
        threads[-1].start()
        while len(line._waiting) <= number:
            time.sleep(0.001)
    first_may_go.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert served == [0, 1, 2, 3, 4]
    assert line.wait(lambda: "free again", 0.0) == "free again"


def test_who_gave_up_holds_nobody_up(tmp_path: Path) -> None:
    line = Line(str(tmp_path / "app.db"))
    has_it, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        has_it.set()
        assert may_go.wait(DEADLINE_S)

    holding = threading.Thread(target=line.wait, args=[hold, 30.0])
    holding.start()
    assert has_it.wait(DEADLINE_S)
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match=r"database is locked: .* for 0\.01 s"):
            line.wait(lambda: None, 0.01)
    may_go.set()
    holding.join(DEADLINE_S)
    assert line.wait(lambda: "free", 0.01) == "free"


def test_rows_of_one_call_come_together_or_not_at_all(orders: None) -> None:
    with pytest.raises(IntegrityError, match="UNIQUE"):
        connection.cursor().executemany("INSERT INTO orders (id) VALUES (%s)", [[1], [2], [1]])
    assert count() == 0
    connection.cursor().executemany("INSERT INTO orders (id) VALUES (%s)", ([number] for number in range(3)))
    assert count() == 3


def test_its_transactions_are_immediate_and_its_log_is_written_ahead(orders: None) -> None:
    assert run("PRAGMA journal_mode") == [("wal",)]
    assert run("PRAGMA synchronous") == [(1,)]
    with transaction.atomic(), pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(connection.settings_dict["NAME"], timeout=0).execute("BEGIN IMMEDIATE")


def test_what_the_settings_say_of_the_connection_counts(use_database: UseDatabase) -> None:
    use_database(init_command="PRAGMA synchronous=FULL; PRAGMA cache_size=-3000", transaction_mode="EXCLUSIVE")
    assert run("PRAGMA synchronous") == [(2,)]
    assert run("PRAGMA cache_size") == [(-3000,)]
    assert connection.transaction_mode == "EXCLUSIVE"


def test_a_transaction_that_cannot_wait_is_refused_in_the_settings(use_database: UseDatabase) -> None:
    use_database(transaction_mode="DEFERRED")
    with pytest.raises(ImproperlyConfigured, match=r"DEFERRED.*Remove the option"):
        run("SELECT 1")


def test_a_database_in_memory_is_djangos_own_affair(use_database: UseDatabase) -> None:
    use_database(name="x")
    connections.settings["default"]["NAME"] = "file:memorydb_engine?mode=memory&cache=shared"
    run("CREATE TABLE orders (id INTEGER PRIMARY KEY, name TEXT)")
    with transaction.atomic():
        run("INSERT INTO orders (name) VALUES ('a')")
    assert count() == 1


def test_an_error_that_is_no_lock_is_not_waited_for(orders: None) -> None:
    with pytest.raises(OperationalError, match="no such table: nowhere"):
        run("INSERT INTO nowhere VALUES (1)")


@forks
def test_a_child_does_not_stand_behind_the_threads_of_its_parent(orders: None) -> None:
    connection.close()
    from gpuqueue.integrations.django.sqlite3.line import line_for

    inside, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert may_end.wait(DEADLINE_S)

    line = line_for(os.path.realpath(connection.settings_dict["NAME"]))
    thread = threading.Thread(target=line.wait, args=[hold, 30.0])
    thread.start()
    assert inside.wait(DEADLINE_S)
    child = fork()
    if not child:
        try:
            WRITES[0]()
            os._exit(0)
        finally:
            os._exit(1)
    may_end.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert count() == 1


def test_who_is_interrupted_in_its_turn_holds_nobody_up(tmp_path: Path) -> None:
    line = Line(str(tmp_path / "app.db"))

    def interrupted() -> None:
        with pytest.raises(sqlite3.OperationalError, match="a signal handler"):
            line.wait(lambda: None, 0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        line.wait(interrupted, 30.0)
    assert line.wait(lambda: "free", 0.01) == "free"


class Rolled(Exception):
    pass


def test_many_web_threads_beside_a_busy_worker_meet_no_lock_and_lose_no_job(app_file: DjangoQueue) -> None:
    """A short play of what tests/benchmarks/test_django.py measures."""
    errors: Counter[str] = Counter()
    kept: list[Any] = []
    rolled: list[Any] = []

    def web(number: int) -> None:
        try:
            for turn in range(4):
                try:
                    with transaction.atomic():
                        run("INSERT INTO orders (name) VALUES (%s)", [f"{number}-{turn}"])
                        result = tasks.add.enqueue(number, b=turn)
                        if turn == 2:
                            raise Rolled
                    kept.append(result)
                except Rolled:
                    rolled.append(result)
        except Exception as error:
            errors[repr(error)] += 1
        finally:
            connection.close()

    made = app_file.task_of(tasks.add)
    app_file.enqueue_many([(made, {"args": [1], "kwargs": {}})] * 2000)
    with Worker(app_file):
        threads = [threading.Thread(target=web, args=[number]) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert errors == {}
        assert (len(kept), len(rolled), count()) == (60, 20, 60)
        for result in kept:
            assert job_of(result).result(timeout_s=DEADLINE_S) == result.args[0] + result.kwargs["b"]
    for result in rolled:
        with pytest.raises(TaskResultDoesNotExist):
            tasks.add.get_result(result.id)
    assert app_file.counts()["default"] == {"completed": 2060}
