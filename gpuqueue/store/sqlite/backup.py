"""Owns the copy of a database file while it is in use, and the proof that the copy is whole; restores none."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from gpuqueue.domain.errors import NotADatabase, StoreError, StoreUnwritable, UsageError
from gpuqueue.domain.findings import Finding
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.connections import explained, read_only
from gpuqueue.store.sqlite.integrity import check_file

PAGES_AT_ONCE = 2000  # so that Ctrl-C is heard; nobody waits for the copy, whatever its pace


class BackedUp(NamedTuple):
    """A copy that was verified; `findings` are contradictions that the database itself has."""

    size_bytes: int
    job_count: int
    findings: list[Finding]


def back_up(database: Path, target: Path, *, overwrite: bool) -> BackedUp:
    """Copy a database as it is at one moment, whatever its schema, into a file with mode 0600, and check the copy.

    Until the copy is whole and checked it has another name, so that a failure leaves nothing, and what was there before.
    Raises: UsageError when the target cannot be taken; StoreError.
    """
    _expect_free(database, target, overwrite)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise StoreUnwritable(f"cannot write in {target.parent}: {error.strerror}") from None
    try:
        job_count = _copy(database, unfinished, target)
        findings = check_file(unfinished)
        damage = [finding.detail for finding in findings if finding.check == "sqlite"]
        if damage:
            raise StoreError(f"the copy is damaged ({damage[0]}) and was not kept; look at {database} with: gpuqueue db check")
        size_bytes = unfinished.stat().st_size
        os.replace(unfinished, target)
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(f"{unfinished}{end}")
    return BackedUp(size_bytes, job_count, findings)


def _expect_free(database: Path, target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise UsageError(f"{target} is a folder: give a file's name")
    if not target.parent.is_dir():
        raise UsageError(f"the folder {target.parent} does not exist. Create it with: mkdir -p {target.parent}")
    if target.exists():
        if os.path.samefile(database, target):
            raise UsageError(f"{target} is the database itself: give another file's name")
        if not overwrite:
            raise UsageError(f"{target} is there already; --force overwrites it")
    for end in ("-wal", "-journal"):
        # SQLite would take what an old log holds into the new file.
        if Path(f"{target}{end}").exists():
            raise UsageError(f"{target}{end} is there, so {target} is a database in use: give another file's name")


def _copy(database: Path, unfinished: Path, target: Path) -> int:
    """Copy all pages as of one moment; returns the number of jobs. Errors speak of the target."""
    try:
        with read_only(database) as source, explained(target), closing(sqlite3.connect(unfinished)) as copy:
            # One read transaction holds that moment; without it every commit of others would begin the copy anew.
            source.execute("BEGIN")
            names = migrate.table_names(source)
            count: int = source.execute("SELECT count(*) FROM jobs").fetchone()[0] if "jobs" in names else 0
            source.backup(copy, pages=PAGES_AT_ONCE)
            # One file that can be read anywhere, also where nothing may be written beside it.
            copy.execute("PRAGMA journal_mode = DELETE")
            return count
    except NotADatabase as error:
        raise NotADatabase(f"{database} is not a SQLite database, or is damaged: {error.__cause__}") from error
