"""Owns the command group `db`: where the database is, its schema's version, and upgrading it; reads no job."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import click

from gpuqueue.cli.rendering import print_json
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.errors import NotADatabase, StoreError, UsageError
from gpuqueue.store import migrate


@click.group()
def db() -> None:
    """The database file: its place, its version, upgrading it."""


@db.command("path")
@json_option
@pass_session
def show_path(session: Session, as_json: bool) -> None:
    """Print the absolute path of the database file.

    Keys: database, exists.
    """
    if as_json:
        print_json({"database": str(session.database), "exists": session.database.exists()})
    else:
        click.echo(session.database)


@db.command("version")
@json_option
@pass_session
def show_version(session: Session, as_json: bool) -> None:
    """Print the version of the file's schema and the one that this gpuqueue writes; changes nothing.

    Keys: database, version (null: empty), newest, current.
    """
    found = file_version(session.database)
    if as_json:
        print_json(
            {"database": str(session.database), "version": found, "newest": migrate.HEAD, "current": found == migrate.HEAD}
        )
        return
    click.echo(f"{session.database}: schema {found or 'none yet'}, this gpuqueue writes {migrate.HEAD}")
    if found != migrate.HEAD:
        click.echo(f"  upgrade it with: {session.command('db', 'upgrade')} (or by using it)")


@db.command("upgrade")
@pass_session
def upgrade(session: Session) -> None:
    """Bring the file to the newest schema. A worker or an application that opens it does the same."""
    before = file_version(session.database)
    session.queue().queue_names()
    after = file_version(session.database)
    click.echo(
        f"{session.database}: schema {after}" + (" already" if before == after else f", upgraded from {before or 'empty'}")
    )


def file_version(path: Path) -> str | None:
    """Read a file's schema version without changing it. Raises: UsageError, StoreError."""
    if not path.exists():
        raise UsageError(f"there is no database at {path} yet; the first worker or `gpuqueue submit` makes it")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return migrate.version(connection)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise NotADatabase(f"{path} is not a SQLite database, or is damaged: {error}. Nothing was changed") from error
        raise StoreError(f"{path} cannot be read: {error}") from error
