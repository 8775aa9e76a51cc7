"""Pauses and resumes queues, cancels and retries jobs: the commands that change what runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpuqueue.cli.asking import may_go_on, yes_option
from gpuqueue.cli.completion import Completer, job_to_cancel, job_to_retry, queue_names
from gpuqueue.cli.rendering import error_line, parse_moment, print_json
from gpuqueue.cli.session import Session, pass_session
from gpuqueue.cli.shapes import hold_shape
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.errors import StateError, UsageError
from gpuqueue.domain.job import FINISHED, WAITING, State
from gpuqueue.domain.moments import iso, until
from gpuqueue.domain.numbers import LARGEST as LARGEST_ID

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON; its keys are listed above.")


def _job_ids(which: Completer) -> Callable[[Command], Command]:
    return click.argument("job_ids", metavar="[ID]...", type=click.IntRange(1, LARGEST_ID), nargs=-1, shell_complete=which)


@click.command()
@click.argument("queue", shell_complete=queue_names)
@click.option("--reason", default="", help="Why; shown to everyone who asks why the queue is held.")
@click.option(
    "--until",
    "until_text",
    metavar="WHEN",
    help='A duration ("30m"), a time of day ("18:00") or ISO 8601. Default: until resume.',
)
@json_option
@pass_session
def pause(session: Session, queue: str, reason: str, until_text: str | None, as_json: bool) -> None:
    """Start no more jobs of QUEUE; running jobs continue.

    \b
    Keys: queue, paused, reason, until (null: until resume).
    """
    gq = session.existing_queue()
    now = gq.now()
    end = None if until_text is None else parse_moment(until_text, now=now, what="--until")
    if end is not None and end <= now:
        raise UsageError(f"--until must be in the future, not {until_text!r}")
    gq.pause(queue, reason=reason, until=end)
    if as_json:
        print_json({"queue": queue, "paused": True, "reason": reason, "until": iso(end)})
        return
    click.echo(f"{queue} is paused{until(end, now=now)}. Running jobs continue. Resume with: {session.command('resume', queue)}")


@click.command(short_help="Resume a queue that was paused with `pause`.")
@click.argument("queue", shell_complete=queue_names)
@json_option
@pass_session
def resume(session: Session, queue: str, as_json: bool) -> None:
    """Resume a queue that was paused with `pause`; windows and other holds stay in force.

    \b
    Keys: queue, was_paused, holds: [{reason, detail, until, advice}].
    """
    gq = session.existing_queue()
    was_paused = gq.resume(queue)
    holds = gq.holds().get(queue, [])
    if as_json:
        print_json({"queue": queue, "was_paused": was_paused, "holds": [hold_shape(hold) for hold in holds]})
        return
    click.echo(f"{queue} is resumed" if was_paused else f"{queue} was not paused")
    for hold in holds:
        click.echo(f"  still held: {hold.detail}{until(hold.until, now=gq.now())}")


@click.command(short_help="Cancel waiting or running jobs.")
@_job_ids(job_to_cancel)
@click.option("--all", "every", is_flag=True, help="All waiting and running jobs of --queue.")
@click.option("--queue", metavar="QUEUE", shell_complete=queue_names, help="The queue, with --all.")
@yes_option
@json_option
@pass_session
def cancel(session: Session, job_ids: tuple[int, ...], every: bool, queue: str | None, yes: bool, as_json: bool) -> int:
    """Cancel jobs: a waiting job at once; a running job is asked to stop, in whatever process it runs.

    At a terminal, --all asks before it cancels more than one job. Exit status 1 if a job had already finished.

    \b
    Keys: jobs: [{id, cancelled, state}].
    Keys with --all: cancelled (how many were waiting), asked_to_stop (how
      many were running).
    """
    _expect_ids_or("--all", every, job_ids, queue)
    gq = session.existing_queue()
    if every:
        if queue is None:
            raise UsageError(f"--all needs --queue QUEUE. Queues: {', '.join(sorted(gq.queue_names()))}")
        return _cancel_all(gq, queue, yes, as_json)
    handles = [gq.job(job_id) for job_id in job_ids]  # an unknown id fails before any job is cancelled
    done = []
    for handle in handles:
        before: State = handle.state
        cancelled = handle.cancel()
        handle.refresh()
        done.append({"id": handle.id, "cancelled": cancelled, "state": str(handle.state)})
        if as_json:
            continue
        if not cancelled:
            state = before if before in FINISHED else handle.state
            click.echo(f"job {handle.id} is already {state}")
        elif handle.state is State.RUNNING:
            click.echo(f"job {handle.id} is running and was asked to stop")
        else:
            click.echo(f"job {handle.id} is cancelled")
    if as_json:
        print_json({"jobs": done})
    return 0 if all(item["cancelled"] for item in done) else 1


def _cancel_all(gq: GPUQueue, queue: str, yes: bool, as_json: bool) -> int:
    counts = gq.counts().get(queue, {})
    running = counts.get(State.RUNNING, 0)
    waiting = sum(counts.get(state, 0) for state in WAITING)
    deeds = [
        f"cancel {_number(waiting, 'waiting job')}" if waiting else "",
        f"ask {_number(running, 'running job')} to stop" if running else "",
    ]
    question = f"{queue}: {' and '.join(filter(None, deeds))}?"
    if not may_go_on(question, count=waiting + running, yes=yes):
        return 1
    found = gq.cancel_all(queue)
    if as_json:
        print_json({"cancelled": found.cancelled_count, "asked_to_stop": found.asked_to_stop_count})
        return 0
    if not (found.cancelled_count or found.asked_to_stop_count):
        click.echo(f"{queue} has no waiting or running jobs")
    if found.cancelled_count:
        click.echo(f"{queue}: {_number(found.cancelled_count, 'waiting job')} cancelled")
    if found.asked_to_stop_count:
        click.echo(f"{queue}: {_number(found.asked_to_stop_count, 'running job')} asked to stop")
    return 0


@click.command(short_help="Retry failed, cancelled or postponed jobs.")
@_job_ids(job_to_retry)
@click.option("--failed", is_flag=True, help="All discarded jobs, of --queue or of all queues.")
@click.option("--queue", metavar="QUEUE", shell_complete=queue_names, help="With --failed: only jobs in this queue.")
@yes_option
@json_option
@pass_session
def retry(session: Session, job_ids: tuple[int, ...], failed: bool, queue: str | None, yes: bool, as_json: bool) -> int:
    """Make discarded, cancelled or postponed jobs available again, and count their attempts from zero.

    At a terminal, --failed asks before it retries more than one job. A job that cannot be retried in its state is skipped: exit
    status 2 if all are, 1 if some are.

    \b
    Keys: jobs: [{id, retried, state}].
    Keys with --failed: retried (how many).
    """
    _expect_ids_or("--failed", failed, job_ids, queue)
    gq = session.existing_queue()
    if failed:
        return _retry_failed(session, gq, queue, yes, as_json)
    handles = [gq.job(job_id) for job_id in job_ids]
    done = []
    for handle in handles:
        try:
            handle.retry()
            done.append({"id": handle.id, "retried": True, "state": str(handle.refresh().state)})
        except StateError as error:
            error_line(str(error))
            done.append({"id": handle.id, "retried": False, "state": str(handle.refresh().state)})
            continue
        if not as_json:
            click.echo(f"job {handle.id} is available again")
            _tell_unserved(session, gq, {handle.queue})
    if as_json:
        print_json({"jobs": done})
    retried = [item["retried"] for item in done]
    return 0 if all(retried) else 1 if any(retried) else 2


def _retry_failed(session: Session, gq: GPUQueue, queue: str | None, yes: bool, as_json: bool) -> int:
    counts = {name: states.get(State.DISCARDED, 0) for name, states in gq.counts().items() if queue in (None, name)}
    in_queue = "" if queue is None else f" in {queue}"
    question = f"Retry {_number(sum(counts.values()), 'discarded job')}{in_queue}?"
    if not may_go_on(question, count=sum(counts.values()), yes=yes):
        return 1
    retried = gq.retry_failed(queue)
    if as_json:
        print_json({"retried": retried})
        return 0
    are = "is" if retried == 1 else "are"
    click.echo(f"{_number(retried, 'job')}{in_queue} {are} available again" if retried else f"no discarded jobs{in_queue}")
    if retried:
        _tell_unserved(session, gq, {name for name, count in counts.items() if count})
    return 0


def _expect_ids_or(option: str, is_given: bool, job_ids: tuple[int, ...], queue: str | None) -> None:
    """Raises: UsageError unless either ids or the option select the jobs."""
    if is_given and job_ids:
        raise UsageError(f"give ids or {option}, not both")
    if not is_given and queue is not None:
        raise UsageError(f"--queue needs {option}")
    if not is_given and not job_ids:
        raise UsageError(f"specify job ids or {option}")


def _tell_unserved(session: Session, gq: GPUQueue, queues: set[str]) -> None:
    for queue in sorted(queues):
        if not gq.is_served(queue):
            click.echo(f"  no worker serves {queue}. Start one: {session.worker_command(queue)}")


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
