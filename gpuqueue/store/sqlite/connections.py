"""Owns connections to the database file: opening, pragmas, and the wording of SQLite's errors; runs no query."""

from __future__ import annotations

import errno
import os
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


def create(path: Path, *, synchronous: str) -> Engine:
    """Make the engine for a database file; the file is created with mode 0600 when it is missing.

    Raises: StoreUnwritable when the file or its folder does not allow it; StoreError for a SQLite that is too old.
    """
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: gpuqueue needs 3.35 or newer")
    if path.is_dir():
        raise StoreUnwritable(f"{path} is a folder, not a database file: give a file's name")
    try:
        # Only a file that is new: closing a descriptor of one that this process has open drops SQLite's locks on it, by
        # POSIX rules, and another process would then delete the write-ahead log under us.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if not os.access(path, os.R_OK | os.W_OK):
            raise StoreUnwritable(f"cannot open {path} for writing: {os.strerror(errno.EACCES)}") from None
    except FileNotFoundError:
        raise StoreUnwritable(
            f"cannot create {path}: its folder does not exist. Create it with: mkdir -p {path.parent}"
        ) from None
    except OSError as error:
        raise StoreUnwritable(f"cannot open {path} for writing: {error.strerror}") from None
    if not os.access(path.parent, os.W_OK):
        raise StoreUnwritable(f"cannot write in {path.parent}: SQLite keeps its -wal and -shm files beside {path.name}")
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import NullPool

    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": READ_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        # The WAL pragma can itself meet a lock, so the busy timeout goes to 0 (in the writer) only afterwards.
        with explained(path):
            if write_ahead(connection) != "wal":
                raise StoreError(f"{path} cannot use a write-ahead log; is it on a network file system?")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute("PRAGMA temp_store = MEMORY")

    return engine


def write_ahead(connection: sqlite3.Connection) -> str:
    """Switch to a write-ahead log; returns the mode that the file then has."""
    give_up_s = time.monotonic() + READ_TIMEOUT_MS / 1000
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            return mode
        except sqlite3.OperationalError as error:
            # Of several processes that open a new file one switches; SQLite refuses the others at once, without waiting.
            if not is_busy(error) or time.monotonic() > give_up_s:
                raise
            time.sleep(SWITCH_PAUSE_S)


def connect(engine: Engine) -> sqlite3.Connection:
    """Take a driver connection out of the engine, for its holder to keep and close."""
    pooled = engine.raw_connection()
    connection = pooled.driver_connection
    pooled.detach()
    return cast(sqlite3.Connection, connection)


@contextmanager
def read_only(path: Path, *, patience_s: float = READ_TIMEOUT_MS / 1000) -> Iterator[sqlite3.Connection]:
    """Open a file that is there as it is, whatever its schema, without changing it. Raises: StoreError."""
    with explained(path):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=patience_s)
        try:
            yield connection
        finally:
            connection.close()


def is_busy(error: sqlite3.Error) -> bool:
    """Say whether another connection held the lock (SQLITE_BUSY and SQLITE_LOCKED in all their variants)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors inside the block into a StoreError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def explain(error: sqlite3.Error, path: Path) -> StoreError:
    """Word a SQLite error for the person who must mend it."""
    if is_busy(error):
        return StoreBusy(f"{path} is locked by another process; try again")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return NotADatabase(f"{path} is not a SQLite database, or is damaged: {error}. Nothing was changed; give another path")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreUnwritable(f"{path} cannot be written: {error}. Check the permissions of the file and its folder")
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"no space left for {path}: {error}. Nothing of this call was stored; free some space and repeat it")
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(f"reading or writing {path} failed: {error}. Nothing of this call was stored; check the disk")
    return StoreError(f"{path}: {error}")
