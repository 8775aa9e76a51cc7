"""Opens connections to the database file, sets pragmas, and translates SQLite's errors; runs no query."""

from __future__ import annotations

import errno
import itertools
import os
import shlex
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gpuqueue.domain.errors import NotADatabase, StoreBusy, StoreError, StoreFull, StoreUnwritable

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

MINIMUM_SQLITE = (3, 35, 0)
LIBRARY_VERSION = sqlite3.sqlite_version_info
READ_TIMEOUT_MS = 5000  # a reader in WAL mode meets a lock only while the file is recovered
SWITCH_PAUSE_S = 0.01
LOG_BYTES = 64_000_000  # a log that had to grow beyond this is cut to it when it starts again from its beginning
_numbers = itertools.count(1)


class Connection(sqlite3.Connection):
    """A connection that its pool knows for as long as somebody has it."""

    __slots__ = ("__weakref__", "number", "thread")
    number: int
    thread: int  # of the reader that it is lent to


def create(path: Path, *, synchronous: str) -> Engine:
    """Create the engine for a database file; a missing file is created with mode 0600.

    Raises: StoreUnwritable if the file or its folder is not writable; StoreError if SQLite is too old.
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: gpuqueue needs 3.35 or newer")
    if os.path.isdir(path):
        raise StoreUnwritable(f"{path} is a folder, not a database file; give a file name")
    try:
        # Only a new file: closing a descriptor of a file that this process has open would drop SQLite's locks on it (a POSIX
        # rule), and another process would then delete the write-ahead log while it is in use.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreUnwritable(f"cannot open {path} for writing: {os.strerror(errno.EACCES)}.{who_may(path)}") from None
    except FileNotFoundError:
        raise StoreUnwritable(
            f"cannot create {path}: its folder does not exist. Create it with: mkdir -p {path.parent}"
        ) from None
    except OSError as error:
        raise StoreUnwritable(f"cannot open {path} for writing: {error.strerror}.{who_may(path)}") from None
    if not os.access(path.parent, os.W_OK):
        raise StoreUnwritable(
            f"cannot write in {path.parent}: SQLite keeps its -wal and -shm files next to {path.name}.{who_may(path)}"
        )
    from sqlalchemy import URL, create_engine, event
    from sqlalchemy.pool import NullPool

    engine = create_engine(
        URL.create("sqlite", database=str(path)),  # as text it would be decoded, and another file opened
        poolclass=NullPool,
        connect_args={
            "factory": Connection,
            "isolation_level": None,
            "check_same_thread": False,
            "timeout": READ_TIMEOUT_MS / 1000,
        },
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        # The WAL pragma itself may have to wait for a lock, so the writer sets the busy timeout to 0 only afterwards.
        with explained(path):
            if write_ahead(connection) != "wal":
                raise StoreError(f"{path} cannot use a write-ahead log; is it on a network file system?")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")

    return engine


def write_ahead(connection: sqlite3.Connection) -> str:
    """Switch to a write-ahead log; returns the resulting journal mode."""
    give_up_s = time.monotonic() + READ_TIMEOUT_MS / 1000
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            return mode
        except sqlite3.OperationalError as error:
            # If several processes open a new file, one switches; SQLite rejects the others immediately, without waiting.
            if not is_busy(error) or time.monotonic() > give_up_s:
                raise
            time.sleep(SWITCH_PAUSE_S)


def connect(engine: Engine) -> Connection:
    """Detach a driver connection from the engine; the caller keeps and closes it."""
    pooled = engine.raw_connection()
    connection = cast(Connection, pooled.driver_connection)
    connection.number, connection.thread = next(_numbers), 0
    pooled.detach()
    return connection


@contextmanager
def read_only(path: Path, *, patience_s: float = READ_TIMEOUT_MS / 1000) -> Iterator[sqlite3.Connection]:
    """Open an existing file read-only, whatever its schema. Raises: StoreError."""
    with explained(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=patience_s)
        try:
            yield connection
        finally:
            connection.close()


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether another connection held the lock (SQLITE_BUSY and SQLITE_LOCKED in all their variants)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert SQLite's errors inside the block to a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """Convert an SQLite error to a StoreError that says what to do."""
    if is_busy(error):
        return StoreBusy(f"{path} is locked by another process; try again")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return NotADatabase(f"{path} is not an SQLite database, or is damaged: {error}. Nothing was changed; give another path")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        advice = who_may(path) or " Check the permissions of the file and its folder"
        return StoreUnwritable(f"{path} cannot be written: {error}.{advice}")
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"no space left for {path}: {error}. Nothing was stored; free some space and try again")
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(f"reading or writing {path} failed: {error}. Nothing was stored; check the disk")
    return StoreError(f"{path}: {error}")


def who_may(path: Path) -> str:
    """Say who may write the first file that this process may not, and what several users of one database need; else nothing."""
    if not hasattr(os, "geteuid"):  # Windows
        return ""
    for file in (path.parent, path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        try:
            found = file.stat()
        except OSError:
            continue
        if os.access(file, os.R_OK | os.W_OK | (os.X_OK if file == path.parent else 0)):
            continue
        folder, files = shlex.quote(str(path.parent)), f"{shlex.quote(str(path))}*"
        return (
            f" {file} belongs to {_user(found.st_uid)} (mode {found.st_mode & 0o777:04o}), and this process runs as "
            f"{_user(os.geteuid())}. Users of one database need a group in common that may write the folder and the files in it: "
            f"chgrp GROUP {folder} {files}; chmod g+rwxs {folder}; chmod g+rw {files}"
        )
    return ""


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
