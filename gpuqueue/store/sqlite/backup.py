"""Copies a database file while it is in use, and checks the copy."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gpuqueue.domain.errors import NotADatabase, StoreError, StoreUnwritable, UsageError
from gpuqueue.domain.findings import Finding
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.connections import explained, read_only
from gpuqueue.store.sqlite.integrity import check_file

PAGES_AT_ONCE = 2000  # so that Ctrl-C takes effect; the copy blocks no other process, however long it takes


class BackedUp(NamedTuple):
    """A verified copy; `findings` are contradictions in the database itself."""

    size_bytes: int
    job_count: int
    findings: list[Finding]


def back_up(database: Path, target: Path, *, overwrite: bool) -> BackedUp:
    """Copy a database as it is at one moment, whatever its schema, into a file with mode 0600, and check the copy.

    The copy has a temporary name until it is complete and checked, so a failure leaves no copy and keeps an existing target.
    Raises: UsageError if the target cannot be used; StoreError.
    """
    _expect_free(database, target, overwrite)
    with checked_copy(database, target) as copy:
        damage = [finding.detail for finding in copy.findings if finding.check == "sqlite"]
        if damage:
            raise StoreError(f"the copy was damaged ({damage[0]}) and was deleted; check {database} with: gpuqueue db check")
        size_bytes = copy.path.stat().st_size
        os.replace(copy.path, target)
    return BackedUp(size_bytes, copy.job_count, copy.findings)


class Copy(NamedTuple):
    """A copy that is complete and checked, but not yet in its place."""

    path: Path
    job_count: int
    findings: list[Finding]


@contextmanager
def checked_copy(database: Path, target: Path) -> Iterator[Copy]:
    """Copy a database to a temporary name next to the target, and check the copy; what is still there at the end is deleted."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StoreUnwritable(f"cannot write in {target.parent}: {error.strerror}") from None
    try:
        job_count = _copy(database, unfinished, target)
        yield Copy(unfinished, job_count, check_file(unfinished))
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{unfinished}{end}")


def expect_place(target: Path) -> None:
    """Raises: UsageError if a file cannot have this name."""
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give a file name")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist. Create it with: mkdir -p {target.parent}")


def _expect_free(database: Path, target: Path, overwrite: bool) -> None:
    expect_place(target)
    if target.exists():
        if os.path.samefile(database, target):
            raise UsageError(f"{target} is the database itself; give another file name")
        if not overwrite:
            raise UsageError(f"{target} already exists; use --force to overwrite it")
    for end in ("-wal", "-journal"):
        # SQLite would apply an old log to the new file.
        if Path(f"{target}{end}").exists():
            raise UsageError(f"{target}{end} exists, so {target} is a database in use; give another file name")


def _copy(database: Path, unfinished: Path, target: Path) -> int:
    """Copy all pages as of one moment; returns the number of jobs. Errors name the target."""
    try:
        with read_only(database) as source, explained(target), closing(sqlite3.connect(unfinished)) as copy:
            # One read transaction fixes that moment; without it, every commit by another process would restart the copy.
            source.execute("BEGIN")
            names = migrate.table_names(source)
            count: int = source.execute("SELECT count(*) FROM jobs").fetchone()[0] if "jobs" in names else 0
            source.backup(copy, pages=PAGES_AT_ONCE)
            # One file that can be read anywhere, also where no file can be written next to it.
            copy.execute("PRAGMA journal_mode = DELETE")
            return count
    except NotADatabase as error:
        raise NotADatabase(f"{database} is not an SQLite database, or is damaged: {error.__cause__}") from error
