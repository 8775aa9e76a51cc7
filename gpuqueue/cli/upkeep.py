"""Prunes, backs up and vacuums the database: the commands of `db` that keep the file small and safe."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from gpuqueue.cli.asking import may_go_on, yes_option
from gpuqueue.cli.completion import finished_states
from gpuqueue.cli.rendering import note, print_json, say
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import finding_shape
from gpuqueue.client.queue import GPUQueue
from gpuqueue.contract.hookspecs import RetentionDetails
from gpuqueue.decisions.view import live_workers
from gpuqueue.domain.errors import StoreError, UsageError, did_you_mean
from gpuqueue.domain.job import FINISHED, State
from gpuqueue.domain.units import format_duration, format_size, parse_duration
from gpuqueue.domain.view import WorkerInfo
from gpuqueue.store import database as store_database

LARGE_PRUNING = 1000
PATIENCE_S = 5.0


@click.command(short_help="Delete old finished jobs.")
@click.option("--older-than", metavar="TIME", help='Only jobs that finished longer ago than this: "7d".')
@click.option(
    "--state", metavar="STATE", shell_complete=finished_states, help="Only jobs in this state: completed, cancelled or discarded."
)
@yes_option
@json_option
@pass_session
def prune(session: Session, older_than: str | None, state: str | None, yes: bool, as_json: bool) -> int:
    """Delete finished jobs and all their data: those past their [retention], or those older than --older-than.

    At a terminal, --older-than asks before it deletes more than one job. The newest job is always kept, so that its id is not
    used again; so is a job that still holds GPU memory.

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
    kept_words = ", ".join(f"{state} {'forever' if s is None else format_duration(s)}" for state, s in kept.items())
    say(f"{total:,} job{'' if total == 1 else 's'} deleted ({found})" if total else f"no jobs to delete; kept: {kept_words}")
    if total >= LARGE_PRUNING:
        note(f"new jobs will use the free space in the file; to return it to the disk: {session.command('db', 'vacuum')}")
    return 0


def _states(state: str | None) -> tuple[State, ...]:
    if state is None:
        return FINISHED
    if state not in FINISHED:
        near = did_you_mean(state, map(str, FINISHED))
        raise UsageError(f"--state must be a finished state ({', '.join(FINISHED)}), not {state!r}{near}")
    return (State(state),)


def _kept(session: Session, older_than: str | None, states: tuple[State, ...]) -> dict[State, float | None]:
    """Return how many seconds jobs in each state are kept; None is forever."""
    if older_than is not None:
        return dict.fromkeys(states, parse_duration(older_than, what="--older-than"))
    gq = session.present_queue()
    answer = gq.plugins.first("retention", RetentionDetails(gq.config.retention, gq.now())) or {}
    return {state: answer.get(state) for state in states}


@click.command(short_help="Copy the database to a file, even while it is in use.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite an existing FILE.")
@json_option
@pass_session
def backup(session: Session, file: Path, force: bool, as_json: bool) -> None:
    """Copy a snapshot of the database to FILE and check the copy; workers can keep running.

    Only its owner can read FILE, because it contains prompts and answers. `gpuqueue db restore FILE` puts it back.

    \b
    Keys: database, backup, size_bytes, jobs (how many),
      findings (what is wrong in the database too): [{check, detail, mend}].
    """
    database = session.present_database()
    target = Path(os.path.abspath(file.expanduser()))
    done = store_database.back_up(database, target, overwrite=force)
    if done.findings:
        broken = ", ".join(dict.fromkeys(finding.check for finding in done.findings))
        note(
            f"Warning: the copy is complete, but has the same errors as the database ({broken}). "
            f"Details: {session.command('db', 'check')}"
        )
    if as_json:
        findings = [finding_shape(finding) for finding in done.findings]
        found = {"database": str(database), "backup": str(target), "size_bytes": done.size_bytes, "jobs": done.job_count}
        print_json({**found, "findings": findings})
        return
    say(f"{target}: {format_size(done.size_bytes)}, {done.job_count:,} jobs, checked")


@click.command(short_help="Put a backup in the place of the database.")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@pass_session
def restore(session: Session, file: Path, as_json: bool) -> None:
    """Check a copy of the backup FILE and put it in the place of the database. Refused while a worker is alive.

    The database before it is kept next to it, with its -wal file: SQLite would apply that to the restored one. An application
    that is running uses the restored file after one error, FileReplaced.

    \b
    Keys: database, backup, size_bytes, jobs (how many), version (its schema),
      kept (the old files), findings (what is wrong in the backup too):
      [{check, detail, mend}].
    """
    gq = session.queue()
    gq.close()
    database, backup = gq.database, Path(os.path.abspath(file.expanduser()))
    suffix = f".before-restore-{gq.now():%Y%m%dT%H%M%SZ}"
    done = store_database.restore(database, backup, suffix=suffix, expect_unused=lambda: _expect_no_worker_of(gq))
    if done.findings:
        broken = ", ".join(dict.fromkeys(finding.check for finding in done.findings))
        note(f"Warning: the backup is restored with its errors ({broken}). Details: {session.command('db', 'check')}")
    if as_json:
        findings = [finding_shape(finding) for finding in done.findings]
        found = {"database": str(database), "backup": str(backup), "size_bytes": done.size_bytes, "jobs": done.job_count}
        print_json({**found, "version": done.version, "kept": list(map(str, done.kept)), "findings": findings})
        return
    say(f"{database}: {format_size(done.size_bytes)}, {done.job_count:,} jobs, restored from {backup} and checked")
    if done.kept:
        say("  kept, in case a job stored after the backup is needed: " + ", ".join(map(str, done.kept)))
    if done.version != store_database.head():
        click.echo(f"  upgrade it with: {session.command('db', 'upgrade')} (a worker does so too)")


def _expect_no_worker_of(gq: GPUQueue) -> None:
    """Refuse while a worker uses the file, or might: the workers of a damaged file cannot be read."""
    if not gq.database.exists():
        return
    try:
        with store_database.as_it_is(gq.database, patience_s=PATIENCE_S) as reads:
            workers = live_workers(reads, now_us=gq.now_us())
    except StoreError as error:
        if store_database.is_open_elsewhere(gq.database):
            raise UsageError(
                f"another process uses {gq.database}, and it cannot be read whether that is a worker ({error}). "
                f"Nothing was changed. Stop it first; to find it: fuser {gq.database}"
            ) from None
        return
    _refuse_beside(workers, "would go on with the old file")


@click.command(short_help="Return unused space in the file to the disk.")
@json_option
@pass_session
def vacuum(session: Session, as_json: bool) -> None:
    """Rewrite the file without its unused pages. Refused while a worker is alive; no job can be enqueued meanwhile.

    While it runs, it needs as much free disk space as the size of the file.

    \b
    Keys: database, before_bytes, after_bytes, finished (false: a process still
      reads the old content, and the file shrinks when it ends).
    """
    gq = session.present_queue()
    _expect_no_worker(gq)
    done = store_database.vacuum(gq.database)
    if as_json:
        found = {"before_bytes": done.before_bytes, "after_bytes": done.after_bytes, "finished": done.finished}
        print_json({"database": str(gq.database), **found})
        return
    if not done.finished:
        say(f"{gq.database} was rewritten; it will shrink when the process that still reads the old content ends")
        return
    smaller = done.before_bytes - done.after_bytes
    words = f"{format_size(smaller)} smaller" if smaller > 0 else "no space to return"
    say(f"{gq.database}: {words}, now {format_size(done.after_bytes)}")


def _expect_no_worker(gq: GPUQueue) -> None:
    _refuse_beside(gq.workers(), "would lose their leases while the file is rewritten")


def _refuse_beside(workers: Sequence[WorkerInfo], why: str) -> None:
    if workers:
        named = ", ".join(f"{worker.id} (pid {worker.pid} on {worker.host})" for worker in workers)
        raise UsageError(
            f"workers are alive and {why}: {named}. Nothing was changed. "
            "Stop the workers first: Ctrl-C or SIGTERM stops them cleanly"
        )
