"""Runs the checks in checks.py and prints what they found: the command `doctor`."""

from __future__ import annotations

import click

from gpuqueue.cli import checks
from gpuqueue.cli.checks import OK, PROBLEM, WARN, Check
from gpuqueue.cli.memory_check import reading_ahead
from gpuqueue.cli.rendering import print_json, say
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.domain.errors import GPUQueueError

COLORS = {OK: "green", WARN: "yellow", PROBLEM: "red"}


@click.command(short_help="Check the setup and say how to fix problems.")
@json_option
@pass_session
def doctor(session: Session, as_json: bool) -> int:
    """Check everything that gpuqueue needs and say how to fix problems. Exit status 1 if there is a problem.

    It changes nothing: it creates no database and upgrades no schema.

    \b
    Keys: ok, checks: [{check, level ("ok", "warn" or "problem"), detail,
      mend (how to fix it; null: nothing to fix)}].
    """
    found = _examine(session)
    is_well = not any(check.level == PROBLEM for check in found)
    if as_json:
        print_json(
            {
                "ok": is_well,
                "checks": [
                    {"check": check.name, "level": check.level, "detail": check.detail, "mend": check.mend or None}
                    for check in found
                ],
            }
        )
        return 0 if is_well else 1
    for check in found:
        say(f"{click.style(f'{check.level:<8}', fg=COLORS[check.level])} {check.name}: {check.detail}", hang=9)
        if check.mend:
            advice = f"{'':<8} → {check.mend}"
            if check.has_command:
                click.echo(advice)
            else:
                say(advice, hang=11)
    counted = {level: sum(check.level == level for check in found) for level in (PROBLEM, WARN)}
    click.echo(f"\n{_number(counted[PROBLEM], 'problem')}, {_number(counted[WARN], 'warning')}")
    return 0 if is_well else 1


def _number(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


def _examine(session: Session) -> list[Check]:
    found = [*checks.versions(), *checks.clock_and_zone()]
    try:
        config = session.config
        session.queue()  # its plugins read their own sections
    except GPUQueueError as error:
        first, _, rest = str(error).partition("\n")
        return [*found, Check(PROBLEM, "configuration", first, rest or "fix it, or write a new one with: gpuqueue init")]
    named = str(config.path) if config.path else "no file, only the database from the command line or the environment"
    found.append(Check(OK, "configuration", f"{named}: queues {', '.join(config.queues) or 'none'}"))
    found += checks.cards(config)
    found += checks.ollama(config)
    found += reading_ahead(config)
    database = checks.database_file(session.database)
    found += database
    if any(check.level == PROBLEM for check in database) or not session.database.exists():
        return found
    try:
        gq = session.queue()
        return [*found, *checks.database_use(gq), *checks.work(gq, session), *checks.services(gq), *checks.agreement(gq)]
    except GPUQueueError as error:
        return [*found, Check(PROBLEM, "database", str(error))]
