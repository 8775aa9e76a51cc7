"""Owns the command group `db` and what it says of the file: path, version, upgrade, check; reads no job."""

from __future__ import annotations

import itertools

import click

from gpuqueue.cli import upkeep
from gpuqueue.cli.rendering import note, print_json, say
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import finding_shape
from gpuqueue.store import database


@click.group(short_help="The database file: check, back up, prune, upgrade.")
def db() -> None:
    """The database file: its place, its version, checking it, keeping it small, backing it up."""


@db.command("path", short_help="Print where the database file is.")
@json_option
@pass_session
def show_path(session: Session, as_json: bool) -> None:
    """Print the absolute path of the database file.

    \b
    Keys: database, exists.
    """
    if as_json:
        print_json({"database": str(session.database), "exists": session.database.exists()})
    else:
        click.echo(session.database)


@db.command("version", short_help="Print the version of the file's schema.")
@json_option
@pass_session
def show_version(session: Session, as_json: bool) -> None:
    """Print the version of the file's schema and the one that this gpuqueue writes; changes nothing.

    \b
    Keys: database, version (null: empty), newest, current.
    """
    found = database.schema_version(session.present_database())
    if as_json:
        print_json(
            {"database": str(session.database), "version": found, "newest": database.head(), "current": found == database.head()}
        )
        return
    say(f"{session.database}: schema {found or 'none yet'}, this gpuqueue writes {database.head()}")
    if found != database.head():
        click.echo(f"  upgrade it with: {session.command('db', 'upgrade')} (or by using it)")


@db.command("upgrade", short_help="Bring the file to the newest schema.")
@json_option
@pass_session
def upgrade(session: Session, as_json: bool) -> None:
    """Bring the file to the newest schema. A worker or an application that opens it does the same.

    \b
    Keys: database, before (null: it was empty), version, upgraded.
    """
    before = database.schema_version(session.present_database())
    session.queue().queue_names()
    after = database.schema_version(session.database)
    if as_json:
        print_json({"database": str(session.database), "before": before, "version": after, "upgraded": before != after})
        return
    say(f"{session.database}: schema {after}" + (" already" if before == after else f", upgraded from {before or 'empty'}"))


@db.command("check", short_help="Check the file, and say what to do when it is wrong.")
@json_option
@pass_session
def check(session: Session, as_json: bool) -> int:
    """Check the file with SQLite's integrity check, and whether its rows agree with each other; changes nothing.

    Exit status 1 when something is wrong. It reads the whole file and may be used beside running workers.

    \b
    Keys: ok, database, version, findings: [{check, detail, mend}].
    """
    version = database.schema_version(session.present_database())
    found = database.check_file(session.database)
    if as_json:
        shapes = [finding_shape(finding) for finding in found]
        print_json({"ok": not found, "database": str(session.database), "version": version, "findings": shapes})
        return 1 if found else 0
    for mend, findings in itertools.groupby(found, key=lambda finding: finding.mend):
        for finding in findings:
            say(f"{click.style('wrong', fg='red')}  {finding.check}: {finding.detail}", hang=7)
        words, command, rest = mend.partition("sqlite3 ")
        say(f"       → {words.rstrip()}")
        if command:
            click.echo(f"         {command}{rest}")
    if not found:
        say(f"{session.database}: nothing wrong")
    if version != database.head():
        note(f"its rows were not compared: the schema is {version or 'none yet'}; first {session.command('db', 'upgrade')}")
    return 1 if found else 0


for command in (upkeep.prune, upkeep.backup, upkeep.vacuum):
    db.add_command(command)
