"""Puts a backup in the place of a database file, and keeps the file and its log under another name; changes no row.

SQLite would apply a log that an earlier file left behind to the new one, whose rows would then be a mixture of both.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gpuqueue.domain.errors import NotADatabase, StoreError, UsageError
from gpuqueue.domain.findings import Finding
from gpuqueue.store.sqlite import migrate
from gpuqueue.store.sqlite.backup import checked_copy, expect_place

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOGS = ("-wal", "-shm", "-journal")
SHARED_FIRST, SHARED_SIZE = 0x4000_0002, 510  # where a connection holds SQLite's shared lock while it has the file open


class Restored(NamedTuple):
    """A backup in its place; `kept` are the files before it, and `findings` contradictions in the backup itself."""

    size_bytes: int
    job_count: int
    version: str
    kept: list[Path]
    findings: list[Finding]


def restore(database: Path, backup: Path, *, suffix: str, expect_unused: Callable[[], None]) -> Restored:
    """Copy a backup, check the copy, and put it in the database's place in one step; the backup stays as it is.

    `suffix` is appended to the names of the old files. `expect_unused` raises while somebody uses the database; it is called
    before the copy and again before the change. A failure leaves the old file in its place.
    Raises: UsageError if the backup cannot be used; NotADatabase; NewerSchema; another StoreError.
    """
    database = Path(os.path.realpath(database))  # SQLite keeps the log next to the file itself
    if not backup.is_file():
        raise UsageError(f"no backup at {backup}")
    expect_place(database)
    if database.exists() and os.path.samefile(database, backup):
        raise UsageError(f"{backup} is the database itself; give a backup of it")
    expect_unused()
    version = migrate.schema_version(backup)
    if version is None:
        raise NotADatabase(f"{backup} contains no queue; give a backup made with: gpuqueue db backup")
    migrate.expect_known(version, backup)
    with checked_copy(backup, database) as copy:
        damage = [finding.detail for finding in copy.findings if finding.check == "sqlite"]
        if damage:
            raise StoreError(f"{backup} is damaged ({damage[0]}). Nothing was changed; restore another backup")
        _belong_like(database, copy.path)
        _sync(copy.path)
        expect_unused()
        kept = _put_aside(database, suffix)
        os.replace(copy.path, database)
        _sync(database.parent)
    return Restored(database.stat().st_size, copy.job_count, version, kept, copy.findings)


def is_open_elsewhere(path: Path) -> bool:
    """Return whether another process has a database file open; this one must not."""
    if fcntl is None:
        return False
    try:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def _belong_like(database: Path, copy: Path) -> None:
    """Give the copy the mode and the owner of the file that it replaces: several users may share it."""
    try:
        before = database.stat()
    except FileNotFoundError:
        return
    if hasattr(os, "chown"):
        with suppress(PermissionError):
            os.chown(copy, before.st_uid, before.st_gid)
    os.chmod(copy, stat.S_IMODE(before.st_mode))


def _put_aside(database: Path, suffix: str) -> list[Path]:
    """Give the file a second name, and move its log to it; returns the names."""
    kept = []
    if database.exists():
        aside = Path(f"{database}{suffix}")
        if aside.exists():
            raise StoreError(f"{aside} already exists. Nothing was changed; try again")
        try:
            os.link(database, aside)  # so that there is a file at any moment
        except OSError:  # a file system without links
            os.rename(database, aside)
        kept.append(aside)
    for end in LOGS:
        if os.path.exists(f"{database}{end}"):
            os.rename(f"{database}{end}", f"{database}{suffix}{end}")
            kept.append(Path(f"{database}{suffix}{end}"))
    return kept


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder, on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
