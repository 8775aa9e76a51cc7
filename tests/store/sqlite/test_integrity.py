"""The check of a file: it finds each broken promise, names the jobs, and says what to do; and it changes nothing."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gpuqueue.domain.errors import NotADatabase, StoreError
from gpuqueue.domain.outcomes import Report
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.integrity import check_file
from gpuqueue.store.store import Store
from tests.store.rows import Rows, at

LARGE = f'{{"text": "{"x" * 2000}"}}'


@pytest.fixture
def filled(store: Store, rows: Rows) -> Path:
    """A file with a job in every state, and with all that can belong to a job."""
    rows.enqueue(arguments=LARGE)
    for _ in range(5):
        rows.enqueue(max_attempts=2)
    rows.enqueue(due_s=100)
    leases = rows.claim(limit=5, s=1)
    store.attempts.report([Report(leases[0].job_id, leases[0].lease, "text", [(at(1), "line")], (0.5, "half"))])
    rows.complete(leases[0], LARGE)
    rows.end(leases[1])
    rows.postpone(leases[2])
    rows.complete(leases[3])
    rows.queue("ai", gpu=True)
    rows.placed(rows.enqueue_sized("ai", 1, "m"))
    store.jobs.cancel(rows.enqueue(), now_us=at(2))
    return store.engine.path


def change(path: Path, statement: str) -> None:
    """Change the file as a person with the sqlite3 command does."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(statement)


def test_a_file_in_use_has_nothing_wrong(filled: Path) -> None:
    assert check_file(filled) == []


BROKEN = {
    "DELETE FROM jobs WHERE id = 1": {"counters", "payloads", "chunks", "logs"},
    "DELETE FROM jobs WHERE id = 3": {"attempts"},
    "UPDATE counters SET count = count + 1 WHERE state = 'completed'": {"counters"},
    "UPDATE jobs SET finished_at = NULL WHERE id = 4": {"finished_at"},
    "UPDATE jobs SET finished_at = 1 WHERE id = 6": {"finished_at"},
    "UPDATE jobs SET state = 'done' WHERE id = 6": {"state"},
    "UPDATE jobs SET device = NULL WHERE id = 8": {"reservation"},
    "UPDATE jobs SET attempt = 9 WHERE id = 5": {"attempt"},
    "UPDATE jobs SET attempt = -1 WHERE id = 6": {"attempt"},
    "UPDATE jobs SET worker_id = NULL WHERE id = 5": {"running"},
    "UPDATE jobs SET started_at = NULL WHERE id = 5": {"running"},
    "UPDATE jobs SET cancel_requested = 1 WHERE id = 6": {"cancel_requested"},
    "DELETE FROM payloads WHERE kind = 'arguments'": {"arguments"},
    "DELETE FROM payloads WHERE kind = 'result'": {"result"},
}


@pytest.mark.parametrize(("statement", "checks"), BROKEN.items(), ids=list(BROKEN))
def test_a_broken_promise_is_found_with_the_job_and_what_to_do(filled: Path, statement: str, checks: set[str]) -> None:
    change(filled, statement)
    found = check_file(filled)
    assert {finding.check for finding in found} == checks
    for finding in found:
        assert finding.mend
        job = re.search(r"id = (\d+)", statement)
        if job and finding.check != "counters":
            assert finding.detail.endswith(f"job {job[1]}")


MENDABLE = [
    "DELETE FROM jobs WHERE id IN (1, 2, 3)",
    "UPDATE counters SET count = 77",
    "UPDATE jobs SET device = NULL WHERE id = 8",
    "UPDATE jobs SET cancel_requested = 1 WHERE state <> 'running'",
]


@pytest.mark.parametrize("statement", MENDABLE)
def test_the_statements_that_it_gives_mend_what_it_found(filled: Path, statement: str) -> None:
    change(filled, statement)
    found = check_file(filled)
    assert found
    for finding in found:
        given = re.search(rf"sqlite3 {re.escape(str(filled))} (['\"])(.*)\1$", finding.mend)
        assert given, finding.mend
        change(filled, given[2])
    assert check_file(filled) == []


def test_what_earlier_versions_left_on_finished_jobs_is_not_wrong(filled: Path) -> None:
    change(filled, "UPDATE jobs SET cancel_requested = 1 WHERE state = 'completed'")
    change(filled, "UPDATE jobs SET waiting_for = 'ollama' WHERE state IN ('cancelled', 'discarded')")
    assert check_file(filled) == []


def test_many_jobs_are_counted_and_some_are_named(filled: Path, rows: Rows) -> None:
    ids = [rows.enqueue() for _ in range(8)]
    change(filled, f"UPDATE jobs SET finished_at = 1 WHERE id >= {ids[0]}")
    (finding,) = check_file(filled)
    assert finding.detail.endswith(f"jobs {', '.join(map(str, ids[:5]))} and 3 more")


def test_a_damaged_page_is_found_and_the_rows_are_left_alone(filled: Path, store: Store, rows: Rows) -> None:
    for _ in range(300):
        rows.enqueue(arguments=LARGE)
    store.close()
    pages = filled.read_bytes()
    filled.write_bytes(pages[:40960] + b"\xff" * 8192 + pages[49152:])
    found = check_file(filled)
    assert {finding.check for finding in found} == {"sqlite"}
    assert "gpuqueue db restore FILE" in found[0].mend
    assert ".recover" in found[0].mend


def test_checking_changes_nothing_and_needs_no_permission_to_write(filled: Path, store: Store) -> None:
    store.close()
    filled.chmod(0o400)
    before = filled.read_bytes()
    assert check_file(filled) == []
    assert filled.read_bytes() == before


def test_a_file_of_an_older_schema_is_checked_by_sqlite_only(filled: Path) -> None:
    change(filled, f"UPDATE {migrate.VERSION_TABLE} SET version_num = '0001'; UPDATE counters SET count = 77")
    assert check_file(filled) == []


def test_what_is_no_database_of_ours_is_refused(tmp_path: Path, filled: Path) -> None:
    other = tmp_path / "other.db"
    change(other, "CREATE TABLE notes (text)")
    with pytest.raises(NotADatabase, match="not a gpuqueue database"):
        check_file(other)
    shutil.copy(__file__, other)
    with pytest.raises(NotADatabase):
        check_file(other)
    with pytest.raises(StoreError):
        check_file(tmp_path / "missing.db")
