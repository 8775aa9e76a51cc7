"""Owns the commands of `db` that keep the file small and safe: prune, backup, vacuum; checks nothing itself."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gpuqueue.cli.asking import may_go_on, yes_option
from gpuqueue.cli.completion import finished_states
from gpuqueue.cli.rendering import note, print_json, say
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import finding_shape
from gpuqueue.client.queue import GPUQueue
from gpuqueue.contract.hookspecs import RetentionDetails
from gpuqueue.domain.errors import UsageError, did_you_mean
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.units import format_duration, format_size, parse_duration
from gpuqueue.store import database as store_database

LARGE_PRUNING = 1000


@click.command(short_help="Delete old finished jobs.")
@click.option("--older-than", metavar="TIME", help='Those that finished longer ago than this: "7d".')
@click.option(
    "--state", metavar="STATE", shell_complete=finished_states, help="Only jobs in this state: completed, cancelled or discarded."
)
@yes_option
@json_option
@pass_session
def prune(session: Session, older_than: str | None, state: str | None, yes: bool, as_json: bool) -> int:
    """Delete finished jobs with all that belongs to them: what [retention] lets go now, or what is older than a time.

    At a terminal it asks before it deletes more than one with --older-than. The newest job always stays, so that its id is
    not given to another; so does one whose memory is still being given back.

    \b
    Keys: pruned: {STATE: number}.
    """
    kept = _kept(session, older_than, _states(state))
    gq = session.present_queue()
    now_us = gq.now_us()
    before_us = {state: now_us - int(seconds * 1e6) for state, seconds in kept.items() if seconds is not None}
    if older_than is not None:
        with gq.store.snapshot() as reads:
            count = sum(reads.prunable_count(state, before_us=at) for state, at in before_us.items())
        question = f"Delete {count:,} jobs that finished more than {format_duration(parse_duration(older_than, what=''))} ago?"
        if not may_go_on(question, count=count, yes=yes):
            return 1
    pruned = {state: gq.store.jobs.prune_all(state, before_us=at) for state, at in before_us.items()}
    if as_json:
        print_json({"pruned": {str(state): pruned.get(state, 0) for state in kept}})
        return 0
    total = sum(pruned.values())
    found = ", ".join(f"{count:,} {state}" for state, count in pruned.items() if count)
    kept_words = ", ".join(f"{state} {'for ever' if s is None else format_duration(s)}" for state, s in kept.items())
    say(f"{total:,} job{'' if total == 1 else 's'} deleted ({found})" if total else f"no job to delete; kept are: {kept_words}")
    if total >= LARGE_PRUNING:
        note(f"new jobs fill the room in the file; to give it back to the disk: {session.command('db', 'vacuum')}")
    return 0


def _states(state: str | None) -> tuple[State, ...]:
    if state is None:
        return FINISHED
    if state not in FINISHED:
        near = did_you_mean(state, map(str, FINISHED))
        raise UsageError(f"--state is {state!r}{near}: only finished jobs are deleted. Right: {', '.join(FINISHED)}")
    return (State(state),)


def _kept(session: Session, older_than: str | None, states: tuple[State, ...]) -> dict[State, float | None]:
    """Say for how many seconds jobs of each state are kept; None is for ever."""
    if older_than is not None:
        return dict.fromkeys(states, parse_duration(older_than, what="--older-than"))
    gq = session.present_queue()
    answer = gq.plugins.first("retention", RetentionDetails(gq.config.retention, gq.now())) or {}
    return {state: answer.get(state) for state in states}


@click.command(short_help="Copy the database to a file, also while it is in use.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE when it is there.")
@json_option
@pass_session
def backup(session: Session, file: Path, force: bool, as_json: bool) -> None:
    """Copy the database as it is at one moment to FILE, beside running workers too, and check the copy.

    Only its owner can read FILE: it has the prompts and the answers. To put it back: end every process that uses the
    database, move FILE to the database's place, and delete the -wal and -shm files that lie there.

    \b
    Keys: database, backup, size_bytes, jobs (how many),
      findings (what is wrong in the database too): [{check, detail, mend}].
    """
    database = session.present_database()
    target = Path(os.path.abspath(file.expanduser()))
    done = store_database.back_up(database, target, overwrite=force)
    if done.findings:
        broken = ", ".join(dict.fromkeys(finding.check for finding in done.findings))
        note(f"Warning: the copy is whole, but as wrong as the database ({broken}). All of it: {session.command('db', 'check')}")
    if as_json:
        findings = [finding_shape(finding) for finding in done.findings]
        found = {"database": str(database), "backup": str(target), "size_bytes": done.size_bytes, "jobs": done.job_count}
        print_json({**found, "findings": findings})
        return
    say(f"{target}: {format_size(done.size_bytes)}, {done.job_count:,} jobs, checked")


@click.command(short_help="Give the disk back what the file no longer needs.")
@json_option
@pass_session
def vacuum(session: Session, as_json: bool) -> None:
    """Write the file anew without its unused pages. Refused while a worker lives; jobs cannot be stored meanwhile.

    It needs as much free space on the disk as the file has, for a while.

    \b
    Keys: database, before_bytes, after_bytes, finished (false: a reader keeps
      the old content, and the file shrinks when that ends).
    """
    gq = session.present_queue()
    _expect_no_worker(gq)
    done = store_database.vacuum(gq.database)
    if as_json:
        found = {"before_bytes": done.before_bytes, "after_bytes": done.after_bytes, "finished": done.finished}
        print_json({"database": str(gq.database), **found})
        return
    if not done.finished:
        say(f"{gq.database} is written anew; it becomes smaller when the process that still reads its old content ends")
        return
    smaller = done.before_bytes - done.after_bytes
    words = f"{format_size(smaller)} smaller" if smaller > 0 else "it had nothing to give back"
    say(f"{gq.database}: {words}, now {format_size(done.after_bytes)}")


def _expect_no_worker(gq: GPUQueue) -> None:
    workers = gq.workers()
    if workers:
        named = ", ".join(f"{worker.id} (pid {worker.pid} on {worker.host})" for worker in workers)
        raise UsageError(
            f"{named} lives, and would lose its lease while the file is written anew; nothing was changed. "
            "Stop the workers first: Ctrl-C or SIGTERM ends them in good order"
        )
