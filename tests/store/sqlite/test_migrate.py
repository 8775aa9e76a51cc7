"""Opening a file: new, old, newer, foreign, damaged, and by several processes at once."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from gpuqueue.domain.errors import NewerSchema, NotADatabase, StoreUnwritable
from gpuqueue.domain.outcomes import Report
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.tables import metadata
from gpuqueue.testing.waiting import DEADLINE_S
from tests.old_files import make_old_file
from tests.processes import LONGEST_S, started
from tests.store.rows import Rows, at


def shape(path: Path) -> dict[str, object]:
    """Everything that tables and indexes are, without the spelling of the statements that made them."""
    connection = sqlite3.connect(path)
    found: dict[str, object] = {}
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in tables - {migrate.VERSION_TABLE}:
        found[table] = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
        found[f"{table} as a whole"] = connection.execute(
            "SELECT type, ncol, wr, strict FROM pragma_table_list WHERE name = ?", (table,)
        ).fetchall()
    indexes = connection.execute(
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name <> ?", (migrate.VERSION_TABLE,)
    )
    for name, table, sql in indexes:
        columns = connection.execute(f"PRAGMA index_xinfo({name})").fetchall()
        condition = " ".join((sql or "").partition(" WHERE ")[2].split())
        found[f"index {name}"] = (table, [column[1:5] for column in columns], condition)
    connection.close()
    return found


def test_a_new_file_equals_the_tables_as_they_are_described(tmp_path: Path) -> None:
    open_store(tmp_path / "migrated.db").close()
    connections = create_engine(f"sqlite:///{tmp_path / 'described.db'}")
    metadata.create_all(connections)
    connections.dispose()
    migrated, described = shape(tmp_path / "migrated.db"), shape(tmp_path / "described.db")
    assert migrated == described
    descending = [column for column in migrated["index jobs_claim"][1] if column[2] == 1]  # type: ignore[index]
    assert [column[1] for column in descending] == ["priority"]


def test_the_newest_migration_is_the_one_that_the_code_knows() -> None:
    script = ScriptDirectory(migrate.migrations_folder())
    assert script.get_heads() == [migrate.head()]
    assert migrate.known_versions()[-1] == migrate.head()


def test_a_file_of_the_first_version_is_upgraded_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    make_old_file(path, "0001")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO jobs (queue, task, state, enqueued_at, scheduled_at, arguments) "
            "VALUES ('work', 'app.task', 'available', ?, ?, '{\"x\":1}')",
            (at(0), at(0)),
        )
        connection.execute("INSERT INTO followers VALUES ('mirror', 0)")
        connection.execute(
            "CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs BEGIN "
            "INSERT INTO events (at, name) VALUES (0, 'of the old version'); END"
        )
    connection.close()
    store = open_store(path)
    rows = Rows(store)
    job = rows.job(1)
    assert (job.arguments, job.progress, job.progress_note) == ({"x": 1}, None, "")
    store.followers.add("mirror")  # as a worker does when it starts
    rows.queue("work")
    rows.store.attempts.report([Report(1, rows.claim_one().lease, "", [(at(1), "line")], (0.5, "half"))])
    told = [event.name for event in store.followers.take("mirror", limit=200)]
    assert told == ["worker_started", "attempt_started", "job_logged", "job_progressed"]
    store.close()
    open_store(tmp_path / "new.db").close()
    assert shape(path) == shape(tmp_path / "new.db")


def test_opening_a_file_that_is_up_to_date_loads_no_alembic(tmp_path: Path) -> None:
    open_store(tmp_path / "jobs.db").close()
    code = (
        "import sys; from pathlib import Path; from gpuqueue.store import open_store; open_store(Path(sys.argv[1])).close(); "
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "jobs.db")], check=True, timeout=LONGEST_S)


def test_a_file_of_a_newer_gpuqueue_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'")
    connection.close()
    before = shape(path)
    with pytest.raises(NewerSchema, match=r"9999.*pip install --upgrade gpuqueue"):
        open_store(path)
    assert shape(path) == before


@pytest.mark.parametrize("table", ["jobs", "events", "workers"])
def test_a_database_with_a_table_of_one_of_our_names_is_refused_and_left_alone(tmp_path: Path, table: str) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE {table} (mine INTEGER)")
        connection.execute(f"INSERT INTO {table} VALUES (7)")
    connection.close()
    with pytest.raises(NotADatabase, match=rf"already has a table `{table}`"):
        open_store(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute(f"SELECT mine FROM {table}").fetchall() == [(7,)]
        assert migrate.table_names(connection) == {table}
    connection.close()


def test_a_database_of_other_tables_is_joined(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER)")
    connection.close()
    store = open_store(path)
    assert Rows(store).enqueue() == 1
    store.close()


@pytest.mark.parametrize(
    "content", [b"this is no database, but a text of some length" * 40, b"SQLite format 3\0" + b"\x07" * 4080]
)
def test_what_is_not_a_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(NotADatabase, match="give another path"):
        open_store(path)
    assert path.read_bytes() == content


def test_a_folder_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="is a folder"):
        open_store(tmp_path)
    with pytest.raises(StoreUnwritable, match="mkdir -p"):
        open_store(tmp_path / "missing" / "jobs.db")


@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    open_store(path).close()
    path.chmod(0o400)
    with pytest.raises(StoreUnwritable, match="for writing"):
        open_store(path)


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(tmp_path / "jobs.db")
        Rows(store).enqueue()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes == {"jobs.db": 0o600, "jobs.db-wal": 0o600, "jobs.db-shm": 0o600}


def test_several_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gpuqueue.store import open_store; from gpuqueue.domain.job import NewJob\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "store.jobs.enqueue(NewJob('work', 't', '{}', 1)); store.close()"
    )
    for number in range(3):
        command = [sys.executable, "-c", code, str(tmp_path / f"{number}.db")]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with ExitStack() as leaving:
            processes = [leaving.enter_context(started(command, **pipes)) for _ in range(4)]
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            for process in processes:
                _, errors = process.communicate(timeout=DEADLINE_S)
                assert process.returncode == 0, errors
        store = open_store(tmp_path / f"{number}.db")
        assert Rows(store).one("SELECT count(*) FROM jobs") == 4
        store.close()


def test_a_process_that_looks_while_another_creates_the_tables_does_not_take_them_for_foreign(tmp_path: Path) -> None:
    """The version is looked for first and the tables after it: both must be of one moment."""
    path = tmp_path / "jobs.db"
    first = sqlite3.connect(path)
    first.execute("PRAGMA journal_mode = WAL")
    first.close()

    class Slow:
        """A connection beside which another process creates the tables after the first look."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self._connection = connection
            self._looked = False

        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            cursor = self._connection.execute(statement, *values)  # type: ignore[arg-type]
            if "sqlite_master" in statement and not self._looked:
                self._looked = True
                rows = cursor.fetchall()
                open_store(path).close()
                return iter(rows)  # type: ignore[return-value]
            return cursor

    from gpuqueue.store.sqlite import connections

    made = connections.create(path, synchronous="normal")
    connection = connections.connect(made)
    migrate.ensure_schema(made, Slow(connection), path)  # type: ignore[arg-type]
    connection.close()
    made.dispose()
    store = open_store(path)
    assert Rows(store).enqueue() == 1
    store.close()
