"""Restoring: the backup as it is, never a mixture with an old log, and the old file whole under another name."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gpuqueue.domain.errors import FileReplaced, NewerSchema, NotADatabase, StoreError, UsageError
from gpuqueue.store import open_store
from gpuqueue.store.sqlite.backup import back_up
from gpuqueue.store.sqlite.integrity import check_file
from gpuqueue.store.sqlite.restore import Restored, is_open_elsewhere, restore
from tests.processes import LONGEST_S, started
from tests.store.rows import Rows

# Stores jobs and dies, so that its log stays behind; or waits, with the file open.
WRITER = """
import os, sys
from pathlib import Path
from gpuqueue.store import open_store
from tests.store.rows import Rows
rows = Rows(open_store(Path(sys.argv[1])), worker=f"w{os.getpid()}")
for number in range(int(sys.argv[2])):
    rows.enqueue()
print("ready", flush=True)
if sys.argv[3] == "dies":
    os.kill(os.getpid(), 9)
sys.stdin.read()
"""


def nobody() -> None: ...


def put_back(database: Path, backup: Path, expect_unused: Callable[[], None] = nobody) -> Restored:
    return restore(database, backup, suffix=".old", expect_unused=expect_unused)


def job_count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
    return found


def files(folder: Path) -> set[str]:
    """The files in a folder, without the logs that whoever only reads leaves behind."""
    return {file.name for file in folder.iterdir() if not file.name.endswith(("-wal", "-shm"))}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A queue's file with three jobs, of which there is a backup."""
    path = tmp_path / "queue.db"
    store = open_store(path)
    rows = Rows(store)
    for _ in range(3):
        rows.enqueue()
    store.close()
    back_up(path, tmp_path / "backup.db", overwrite=False)
    return path


@pytest.fixture
def backup(database: Path) -> Path:
    return database.with_name("backup.db")


def test_after_a_crash_the_backup_is_what_is_there_and_the_crashed_file_is_kept_whole(database: Path, backup: Path) -> None:
    crashed = subprocess.run([sys.executable, "-c", WRITER, str(database), "200", "dies"], timeout=LONGEST_S)
    assert crashed.returncode == -signal.SIGKILL
    assert Path(f"{database}-wal").stat().st_size > 0
    done = put_back(database, backup)
    assert (done.job_count, done.findings) == (3, [])
    assert done.kept == [Path(f"{database}.old"), Path(f"{database}.old-wal"), Path(f"{database}.old-shm")]
    assert job_count(database) == 3
    assert check_file(database) == []
    assert job_count(Path(f"{database}.old")) == 203, "with its log"
    assert job_count(backup) == 3


def test_the_restored_file_has_the_mode_of_the_old_one(database: Path, backup: Path) -> None:
    database.chmod(0o660)
    put_back(database, backup)
    assert stat.S_IMODE(database.stat().st_mode) == 0o660


def test_a_file_that_is_gone_or_damaged_is_replaced_too(database: Path, backup: Path) -> None:
    database.write_bytes(b"\0" * 8192)
    put_back(database, backup)
    assert job_count(database) == 3
    database.unlink()
    assert put_back(database, backup).kept == []
    assert job_count(database) == 3
    assert stat.S_IMODE(database.stat().st_mode) == 0o600


def test_a_link_to_a_file_still_leads_to_it(database: Path, backup: Path, tmp_path: Path) -> None:
    link = tmp_path / "folder" / "link.db"
    link.parent.mkdir()
    link.symlink_to(database)
    put_back(link, backup)
    assert link.is_symlink()
    assert files(link.parent) == {"link.db"}
    assert job_count(database) == 3


def test_a_client_that_has_the_old_file_open_is_told_and_harms_nothing(database: Path, backup: Path) -> None:
    store = open_store(database)
    rows = Rows(store, worker="another")
    job_id = rows.enqueue()
    put_back(database, backup)
    with pytest.raises(FileReplaced) as told:
        store.engine.own_file.look()
    assert job_id in told.value.job_ids
    later = open_store(database)
    Rows(later, worker="a-third").enqueue()
    store.close()  # whose last connection would delete a log by its name
    with later.reading() as reads:
        assert len(reads.jobs(queue=None, state=None, limit=9, after=None)) == 4
    later.close()
    assert job_count(database) == 4


def damaged(backup: Path) -> None:
    content = bytearray(backup.read_bytes())
    content[4096 * 2 : 4096 * 20] = os.urandom(4096 * 18)
    backup.write_bytes(content)


def of_another_program(backup: Path) -> None:
    backup.unlink()
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def newer(backup: Path) -> None:
    with closing(sqlite3.connect(backup)) as connection:
        connection.execute("UPDATE gpuqueue_version SET version_num = '9999'")
        connection.commit()


WRONG: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "missing": (lambda backup: backup.unlink(), UsageError, "no backup at"),
    "empty": (lambda backup: backup.write_bytes(b""), NotADatabase, "contains no queue"),
    "a text": (lambda backup: backup.write_text("notes " * 999), NotADatabase, "is not an SQLite database"),
    "another program's": (of_another_program, NotADatabase, "backup.db contains no queue"),
    "damaged": (damaged, StoreError, "damaged"),
    "newer": (newer, NewerSchema, "written by a newer gpuqueue"),
}


@pytest.mark.parametrize(("spoil", "error", "words"), WRONG.values(), ids=WRONG)
def test_what_is_no_sound_backup_is_refused_and_nothing_is_changed(
    database: Path, backup: Path, spoil: Callable[[Path], object], error: type[Exception], words: str
) -> None:
    spoil(backup)
    before = files(database.parent)
    with pytest.raises(error, match=words):
        put_back(database, backup)
    assert job_count(database) == 3
    assert files(database.parent) == before


def test_the_database_itself_is_no_backup_of_it(database: Path) -> None:
    with pytest.raises(UsageError, match="is the database itself"):
        put_back(database, database)


def test_a_worker_that_starts_during_the_copy_keeps_the_file(database: Path, backup: Path) -> None:
    looks = []

    def expect_unused() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise UsageError("a worker has started")

    before = database.stat().st_ino
    with pytest.raises(UsageError, match="has started"):
        put_back(database, backup, expect_unused)
    assert (database.stat().st_ino, files(database.parent)) == (before, {"queue.db", "backup.db"})


def test_whether_another_process_has_a_file_open_is_known(database: Path) -> None:
    assert not is_open_elsewhere(database)
    command = [sys.executable, "-c", WRITER, str(database), "0", "waits"]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_open_elsewhere(database)
    assert not is_open_elsewhere(database)
