"""Prunes, backs up and vacuums the database: the commands of `db` that keep the file small and safe."""

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

    Only its owner can read FILE, because it contains prompts and answers. To restore it: stop every process that uses the
    database, move FILE to the database's path, and delete the -wal and -shm files there.

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
    workers = gq.workers()
    if workers:
        named = ", ".join(f"{worker.id} (pid {worker.pid} on {worker.host})" for worker in workers)
        raise UsageError(
            f"workers are alive and would lose their leases while the file is rewritten: {named}. Nothing was changed. "
            "Stop the workers first: Ctrl-C or SIGTERM stops them cleanly"
        )
