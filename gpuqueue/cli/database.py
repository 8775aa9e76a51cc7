"""Reports on the database file, and checks and upgrades it: the group of commands `db`."""

from __future__ import annotations

import itertools

import click

from gpuqueue.cli import upkeep
from gpuqueue.cli.rendering import note, print_json, say
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import finding_shape
from gpuqueue.store import database


@click.group(short_help="Check, back up, prune or upgrade the database file.")
def db() -> None:
    """Find, check, back up, restore, prune, shrink or upgrade the database file."""


@db.command("path", short_help="Print the path of the database file.")
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


@db.command("version", short_help="Print the file's schema version.")
@json_option
@pass_session
def show_version(session: Session, as_json: bool) -> None:
    """Print the file's schema version and the version that this gpuqueue uses; changes nothing.

    \b
    Keys: database, version (null: empty), newest, current.
    """
    found = database.schema_version(session.present_database())
    if as_json:
        print_json(
            {"database": str(session.database), "version": found, "newest": database.head(), "current": found == database.head()}
        )
        return
    say(f"{session.database}: schema {found or 'none yet'}; this gpuqueue uses {database.head()}")
    if found != database.head():
        click.echo(f"  upgrade it with: {session.command('db', 'upgrade')} (a worker does so too)")


@db.command("upgrade", short_help="Upgrade the file to the newest schema.")
@json_option
@pass_session
def upgrade(session: Session, as_json: bool) -> None:
    """Upgrade the file to the newest schema. A worker or an application that opens the file does the same.

    \b
    Keys: database, before (null: it was empty), version, upgraded.
    """
    before = database.schema_version(session.present_database())
    session.queue().queue_names()
    after = database.schema_version(session.database)
    if as_json:
        print_json({"database": str(session.database), "before": before, "version": after, "upgraded": before != after})
        return
    upgraded = f"upgraded from {f'schema {before}' if before else 'an empty file'} to schema {after}"
    say(f"{session.database}: {f'already at schema {after}' if before == after else upgraded}")


@db.command("check", short_help="Check the file and say how to repair it.")
@json_option
@pass_session
def check(session: Session, as_json: bool) -> int:
    """Run SQLite's integrity check and check that the rows agree with each other; changes nothing.

    Exit status 1 if something is wrong. It reads the whole file; workers can keep running.

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
        say(f"{session.database}: no problems found")
    if version != database.head():
        note(f"the rows were not checked: their schema is {version or 'none yet'}; first run: {session.command('db', 'upgrade')}")
    return 1 if found else 0


for command in (upkeep.prune, upkeep.backup, upkeep.restore, upkeep.vacuum):
    db.add_command(command)
