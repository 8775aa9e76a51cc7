"""Backing up: a whole copy of one moment, beside writers, checked; and nothing left when it fails."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from gpuqueue.domain.errors import NotADatabase, StoreError, StoreUnwritable, UsageError
from gpuqueue.store import open_store
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.backup import PAGES_AT_ONCE, back_up
from gpuqueue.store.store import Store
from gpuqueue.testing.waiting import DEADLINE_S
from tests.processes import LONGEST_S
from tests.store.rows import Rows, job_of

LARGE = f'{{"text": "{"x" * 20_000}"}}'


def test_a_copy_is_whole_private_and_one_file(store: Store, rows: Rows, tmp_path: Path) -> None:
    for _ in range(5):
        rows.enqueue(arguments=LARGE)
    rows.complete(rows.claim_one())
    target = tmp_path / "copies" / "backup.db"
    target.parent.mkdir()
    done = back_up(store.engine.path, target, overwrite=False)
    assert (done.job_count, done.findings, done.size_bytes) == (5, [], target.stat().st_size)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [file.name for file in target.parent.iterdir()] == ["backup.db"]
    with store.engine.lent() as connection:
        expected = connection.execute("SELECT * FROM jobs").fetchall()
    copy = open_store(target)
    with copy.engine.lent() as connection:
        assert connection.execute("SELECT * FROM jobs").fetchall() == expected
    assert job_of(copy, 1).arguments == {"text": "x" * 20_000}
    copy.close()


def test_a_copy_can_be_read_where_nothing_may_be_written(store: Store, rows: Rows, tmp_path: Path) -> None:
    rows.enqueue()
    target = tmp_path / "backup.db"
    back_up(store.engine.path, target, overwrite=False)
    with closing(sqlite3.connect(f"{target.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    # The header's versions for reading and writing: 1 is a rollback journal, 2 a write-ahead log, which is a file beside it.
    assert target.read_bytes()[18:20] == b"\x01\x01"


def test_beside_a_busy_writer_the_copy_ends_and_is_of_one_moment(store: Store, rows: Rows, tmp_path: Path) -> None:
    while store.engine.path.stat().st_size + store.upkeep.log_bytes() < 3 * PAGES_AT_ONCE * 4096:  # several steps of copying
        store.engine.writer.run(lambda connection: connection.executemany(
            "INSERT INTO jobs (queue, task, state, enqueued_at, scheduled_at, arguments) "
            "VALUES ('work', 't', 'available', 0, 0, ?)",
            [(LARGE,)] * 100,
        ))  # fmt: skip
    stop = threading.Event()
    written = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            rows.complete(rows.claim_one(), LARGE)
            rows.enqueue(arguments=LARGE)
            written.set()

    rows.queue("work")
    producer = threading.Thread(target=produce)
    producer.start()
    try:
        assert written.wait(DEADLINE_S)
        done = back_up(store.engine.path, tmp_path / "backup.db", overwrite=False)
    finally:
        stop.set()
        producer.join()
    assert done.findings == []
    assert 0 < done.job_count <= rows.one("SELECT count(*) FROM jobs")


def test_what_is_there_is_overwritten_only_when_asked(store: Store, rows: Rows, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    target.write_text("mine")
    target.chmod(0o644)
    with pytest.raises(UsageError, match="--force"):
        back_up(store.engine.path, target, overwrite=False)
    assert target.read_text() == "mine"
    rows.enqueue()
    assert back_up(store.engine.path, target, overwrite=True).job_count == 1
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_database_itself_and_one_in_use_are_no_target(store: Store, rows: Rows, tmp_path: Path, overwrite: bool) -> None:
    rows.enqueue()
    link = tmp_path / "link.db"
    os.link(store.engine.path, link)
    with pytest.raises(UsageError, match="the database itself"):
        back_up(store.engine.path, link, overwrite=overwrite)
    other = open_store(tmp_path / "other.db")
    other.queues.ensure("theirs")
    with pytest.raises(UsageError, match="--force" if not overwrite else "in use"):
        back_up(store.engine.path, tmp_path / "other.db", overwrite=overwrite)
    other.close()
    (tmp_path / "gone.db-wal").write_bytes(b"left by a crash")
    with pytest.raises(UsageError, match=r"gone\.db-wal"):
        back_up(store.engine.path, tmp_path / "gone.db", overwrite=overwrite)


def test_a_place_where_nothing_can_be_written_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mkdir -p"):
        back_up(store.engine.path, tmp_path / "missing" / "backup.db", overwrite=False)
    with pytest.raises(UsageError, match="is a folder"):
        back_up(store.engine.path, tmp_path, overwrite=True)
    with pytest.raises(StoreUnwritable, match="/proc"):
        back_up(store.engine.path, Path("/proc/backup.db"), overwrite=False)


def test_a_full_disk_leaves_no_half_copy_and_what_was_there(store: Store, rows: Rows, tmp_path: Path) -> None:
    for _ in range(30):
        rows.enqueue(arguments=LARGE)
    folder = tmp_path / "copies"
    folder.mkdir()
    (folder / "backup.db").write_text("the last one")
    # No file may grow past 100 blocks of 1024 bytes: what a full disk does, for one process.
    code = (
        "import sys; from pathlib import Path; from gpuqueue.store.sqlite.backup import back_up\n"
        "try: back_up(Path(sys.argv[1]), Path(sys.argv[2]), overwrite=True)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    ran = subprocess.run(
        ["bash", "-c", f'ulimit -f 100; exec "{sys.executable}" -c "$0" "$@"', code, store.engine.path, folder / "backup.db"],
        capture_output=True,
        text=True,
        check=True,
        timeout=LONGEST_S,
    )
    assert ran.stdout.startswith(("StoreFull", "StoreError")), ran.stdout + ran.stderr
    assert str(folder / "backup.db") in ran.stdout
    assert [(file.name, file.read_text()) for file in folder.iterdir()] == [("backup.db", "the last one")]


def test_a_damaged_database_gives_no_copy(store: Store, rows: Rows, tmp_path: Path) -> None:
    for _ in range(30):
        rows.enqueue(arguments=LARGE)
    store.close()
    pages = store.engine.path.read_bytes()
    store.engine.path.write_bytes(pages[:40960] + b"\xff" * 8192 + pages[49152:])
    with pytest.raises(StoreError, match="gpuqueue db check"):
        back_up(store.engine.path, tmp_path / "backup.db", overwrite=False)
    store.engine.path.write_bytes(b"my notes, no database " * 1000)
    with pytest.raises(NotADatabase, match=str(store.engine.path)):
        back_up(store.engine.path, tmp_path / "backup.db", overwrite=False)
    assert not list(tmp_path.glob("*backup*"))


def test_contradictions_of_the_database_are_told_and_copied(store: Store, rows: Rows, tmp_path: Path) -> None:
    rows.enqueue()
    rows.complete(rows.claim_one())
    store.engine.writer.run(lambda connection: connection.execute("UPDATE counters SET count = 5"))
    done = back_up(store.engine.path, tmp_path / "backup.db", overwrite=False)
    assert [finding.check for finding in done.findings] == ["counters"]
    assert (tmp_path / "backup.db").exists()


def test_a_file_of_an_older_schema_is_copied_before_it_is_upgraded(store: Store, rows: Rows, tmp_path: Path) -> None:
    rows.enqueue()
    store.engine.writer.run(lambda connection: connection.execute(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '0001'"))
    back_up(store.engine.path, tmp_path / "backup.db", overwrite=False)
    with closing(sqlite3.connect(tmp_path / "backup.db")) as connection:
        assert migrate.version(connection) == "0001"
