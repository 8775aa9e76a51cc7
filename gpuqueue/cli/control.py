"""Owns the commands that change what runs: pause, resume, cancel, retry; decides nothing."""

from __future__ import annotations

import click

from gpuqueue.cli.rendering import error_line, iso, parse_moment, print_json, until
from gpuqueue.cli.session import Session, pass_session
from gpuqueue.domain import FINISHED, State
from gpuqueue.errors import StateError, UsageError

job_ids_argument = click.argument("job_ids", metavar="ID...", type=click.IntRange(min=1), nargs=-1, required=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")


@click.command()
@click.argument("queue")
@click.option("--reason", default="", help="Why; everybody who asks what the queue waits for sees it.")
@click.option(
    "--until", "until_text", metavar="WHEN", help='A duration ("30m"), a time of day ("18:00") or ISO 8601; else until resume.'
)
@json_option
@pass_session
def pause(session: Session, queue: str, reason: str, until_text: str | None, as_json: bool) -> None:
    """Start no more jobs of QUEUE; those that run go on."""
    gq = session.existing_queue()
    now = gq.now()
    end = None if until_text is None else parse_moment(until_text, now=now, what="--until")
    if end is not None and end <= now:
        raise UsageError(f"--until is {until_text!r}: that is in the past")
    gq.pause(queue, reason=reason, until=end)
    if as_json:
        print_json({"queue": queue, "paused": True, "reason": reason, "until": iso(end)})
        return
    click.echo(f"{queue} is paused{until(end, now=now)}. Jobs that run go on. Resume with: {session.command('resume', queue)}")


@click.command(short_help="Lift a pause made with `pause`.")
@click.argument("queue")
@json_option
@pass_session
def resume(session: Session, queue: str, as_json: bool) -> None:
    """Lift a pause that somebody made with `pause`; windows and other holds stay."""
    gq = session.existing_queue()
    was_paused = gq.resume(queue)
    holds = gq.holds().get(queue, [])
    if as_json:
        held = [{"reason": hold.reason, "detail": hold.detail, "until": iso(hold.until)} for hold in holds]
        print_json({"queue": queue, "was_paused": was_paused, "holds": held})
        return
    click.echo(f"{queue} runs again" if was_paused and not holds else f"{queue} is paused by nobody now")
    for hold in holds:
        click.echo(f"  still held: {hold.detail}{until(hold.until, now=gq.now())}")


@click.command(short_help="Stop jobs, waiting or running.")
@job_ids_argument
@json_option
@pass_session
def cancel(session: Session, job_ids: tuple[int, ...], as_json: bool) -> int:
    """Stop jobs: at once while they wait, and from any process while they run.

    Exit status 1 when one of them had finished before.
    """
    gq = session.existing_queue()
    handles = [gq.job(job_id) for job_id in job_ids]  # an unknown one is noticed before any is cancelled
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
            click.echo(f"job {handle.id} had finished before: {state}")
        elif handle.state is State.RUNNING:
            click.echo(f"job {handle.id} runs and was asked to stop")
        else:
            click.echo(f"job {handle.id} is cancelled")
    if as_json:
        print_json({"jobs": done})
    return 0 if all(item["cancelled"] for item in done) else 1


@click.command(short_help="Make ended or postponed jobs available again.")
@job_ids_argument
@json_option
@pass_session
def retry(session: Session, job_ids: tuple[int, ...], as_json: bool) -> int:
    """Make discarded, cancelled or postponed jobs available again, their attempts counted anew.

    Exit status 2 when a job's state does not allow it; the others are retried.
    """
    gq = session.existing_queue()
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
            if not gq.is_served(handle.queue):
                click.echo(f"  no worker serves {handle.queue}. Start one: {session.worker_command(handle.queue)}")
    if as_json:
        print_json({"jobs": done})
    return 0 if all(item["retried"] for item in done) else 2
