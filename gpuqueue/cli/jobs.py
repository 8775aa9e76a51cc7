"""Lists, shows and explains jobs: the commands `jobs`, `job` and `explain`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import click

from gpuqueue.cli.completion import job_to_show, queue_names, state_names
from gpuqueue.cli.rendering import in_terminal, note, print_json, print_table, say, state_style
from gpuqueue.cli.session import Session, json_option, pass_session
from gpuqueue.cli.shapes import attempt_shape, expectation_shape, explanation_shape, job_shape
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.explanation import Explanation
from gpuqueue.domain.job import FINISHED, Job, State
from gpuqueue.domain.moments import clock, since
from gpuqueue.domain.numbers import LARGEST as LARGEST_ID
from gpuqueue.domain.timeline import progress, timeline_of
from gpuqueue.domain.units import counted, format_duration, format_size

SHOWN_CHARACTERS = 600  # of the arguments, a result or an output, without --result
SHOWN_OF_ERROR = 120  # characters, in a list

job_id_argument = click.argument("job_id", metavar="ID", type=click.IntRange(1, LARGEST_ID), shell_complete=job_to_show)


@click.command("jobs")
@click.option("--queue", metavar="QUEUE", shell_complete=queue_names, help="Only jobs of this queue.")
@click.option("--state", metavar="STATE", shell_complete=state_names, help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The maximum number of jobs.")
@click.option(
    "--after",
    type=click.IntRange(1, LARGEST_ID),
    metavar="ID",
    shell_complete=job_to_show,
    help="Continue after this id, with older jobs.",
)
@json_option
@pass_session
def list_jobs(session: Session, queue: str | None, state: str | None, limit: int, after: int | None, as_json: bool) -> None:
    """List jobs, newest first.

    \b
    Keys: jobs: [as `job --json`, without result, output, position,
      expected_start, expected_start_earliest, expected_start_latest,
      expected_finish, expected_finish_earliest, expected_finish_latest
      and attempts],
      next_after (null: there are no more).
    """
    gq = session.existing_queue()
    found = [handle.record for handle in gq.jobs(queue=queue, state=state, limit=limit + 1, after=after)]
    more, shown = len(found) > limit, found[:limit]
    if as_json:
        print_json({"jobs": [job_shape(job) for job in shown], "next_after": shown[-1].id if more else None})
        return
    if not shown:
        note("no jobs" if queue is None and state is None and after is None else "no matching jobs")
        return
    now = gq.now()
    columns = {
        "id": "right",
        "state": "left",
        "queue": "left",
        "task": "left",
        "attempt": "left",
        "enqueued": "left",
        "": "prose",
    }
    print_table(columns, [_row(job, now) for job in shown])
    if more:
        note(f"there are more; continue with --after {shown[-1].id}")


def shortened(text: str) -> str:
    """Shorten a text to about a line in a terminal; a pipe gets all of it."""
    if not in_terminal() or len(text) <= SHOWN_OF_ERROR:
        return text
    return f"{text[:SHOWN_OF_ERROR].rpartition(' ')[0] or text[:SHOWN_OF_ERROR]} …"


def _row(job: Job, now: datetime) -> tuple[str, ...]:
    task = f"{job.task} {job.expected_model}".rstrip()
    about = ""
    if job.error is not None and job.state is not State.COMPLETED:
        about = shortened(job.error.message.partition("\n")[0])
    elif job.finished_at and job.started_at:
        about = f"took {format_duration((job.finished_at - job.started_at).total_seconds())}"
    elif job.started_at and job.state is State.RUNNING:
        said = f"{progress(job)}, " if job.progress is not None else ""
        about = f"{said}for {format_duration(max(0.0, (now - job.started_at).total_seconds()))}"
    elif job.state is State.SCHEDULED:
        about = f"due {clock(job.scheduled_at, now=now)}"
    attempt = f"{job.attempt}/{job.max_attempts}"
    return (str(job.id), str(job.state), job.queue, task, attempt, clock(job.enqueued_at, now=now), about)


@click.command("job", short_help="Show everything about one job.")
@job_id_argument
@json_option
@click.option("--result", "all_result", is_flag=True, help="Show the whole result and output, whatever their length.")
@pass_session
def show_job(session: Session, job_id: int, as_json: bool, all_result: bool) -> None:
    """Show everything about one job: timeline, attempts, error, result, output.

    \b
    Keys: id, queue, task, state, priority, attempt, max_attempts, crashes,
      enqueued_at, scheduled_at, started_at, finished_at, expires_at,
      timeout_s, worker, model, demand_bytes, device, reserved_bytes,
      waiting_for, cancel_requested, progress (0 to 1; null: none
      reported), progress_note, tags, arguments,
      error: {code, message, traceback} or null,
      result (all of it; null: none),
      output (text of the latest attempt),
      position, expected_start, expected_start_earliest,
      expected_start_latest, expected_finish, expected_finish_earliest,
      expected_finish_latest (eight of ten lie between; null: not known),
      attempts (those that did not complete): [{attempt, lease, outcome,
        started_at, finished_at, worker, device,
        error: {code, message, traceback} or null}].
    Datetimes are ISO 8601 in UTC.
    """
    gq = session.existing_queue()
    shape = whole_shape(gq, job_id)
    if as_json:
        print_json(shape)
        return
    job = gq.job(job_id).record
    now = gq.now()
    say(f"job {job.id}: {state_style(str(job.state))}, {job.task} in {job.queue}")
    facts = [
        f"attempt {job.attempt} of {job.max_attempts}",
        f"priority {job.priority}" if job.priority else "",
        f"tags {', '.join(job.tags)}" if job.tags else "",
        f"timeout {format_duration(job.timeout_s)}" if job.timeout_s else "",
        f"worker {job.worker_id}" if job.worker_id else "",
        _worded_progress(job),
        f"{format_size(job.reserved_bytes)} reserved on {job.device}" if job.device else "",
        f"its process died {counted(job.crashes, 'time')}" if job.crashes else "",
    ]
    say("  " + ", ".join(fact for fact in facts if fact))
    _show_timeline(gq, job, now)
    _show_text("arguments", json.dumps(shape["arguments"], ensure_ascii=False), whole=all_result)
    if job.error is not None:
        say(f"error: {job.error.message} ({job.error.code})")
        if job.error.traceback:
            click.echo("".join(f"  {line}\n" for line in job.error.traceback.rstrip().splitlines()), nl=False)
    if shape["result"] is not None:
        _show_text("result", json.dumps(shape["result"], ensure_ascii=False, indent=2), whole=all_result)
    if shape["output"]:
        _show_text("output", shape["output"], whole=all_result)
    if job.state not in FINISHED:
        show_explanation(session.explanation(gq.explain(job_id), job.queue))


def _worded_progress(job: Job) -> str:
    said = progress(job)
    if not said:
        return ""
    return f"progress {said}" if job.state is State.RUNNING else f"its last attempt reached {said}"


def whole_shape(gq: GPUQueue, job_id: int) -> dict[str, Any]:
    """Read everything about a job in one snapshot, as `job --json` prints it. Raises: UnknownJob."""
    with gq.store.snapshot() as reads:
        job = reads.job(job_id)
        ending = reads.status(job_id)
        chunks = reads.chunks(job_id, 0)
        attempts = reads.timeline(job_id)
    latest = max((lease for _, lease, _ in chunks), default=0)
    return {
        **job_shape(job),
        "result": None if ending.result is None else json.loads(ending.result),
        "output": "".join(text for _, lease, text in chunks if lease == latest),
        **expectation_shape(gq.explain(job_id).expected),
        "attempts": [attempt_shape(attempt) for attempt in attempts],
    }


def _show_timeline(gq: GPUQueue, job: Job, now: datetime) -> None:
    with gq.store.reading() as reads:
        attempts = reads.timeline(job.id)
    for at, what in timeline_of(job, attempts, now=now):
        ago = f" ({since(at, now=now)})" if at <= now else ""
        say(f"  {clock(at, now=now)}  {what}{ago}")


def _show_text(title: str, text: str, *, whole: bool) -> None:
    if whole or len(text) <= SHOWN_CHARACTERS:
        click.echo(f"{title}: {text}")
        return
    click.echo(f"{title}: {text[:SHOWN_CHARACTERS]}… ({len(text)} characters; --result shows all)")


@click.command(short_help="Explain why a job waits, until when, and what to do.")
@job_id_argument
@json_option
@pass_session
def explain(session: Session, job_id: int, as_json: bool) -> None:
    """Explain the state of a job: every reason, until when, and what to do.

    \b
    Keys: job_id, state, at, summary, reasons: [{reason, detail, until, advice}],
      position, expected_start, expected_start_earliest,
      expected_start_latest, expected_finish, expected_finish_earliest,
      expected_finish_latest (eight of ten lie between; null: not known),
      advice (null: none), text (all of it, as printed).
    """
    gq = session.existing_queue()
    explanation = session.explanation(gq.explain(job_id), gq.job(job_id).queue)
    if as_json:
        print_json(explanation_shape(explanation))
        return
    show_explanation(explanation)


def show_explanation(explanation: Explanation, *, err: bool = False) -> None:
    """Print an explanation, each piece of advice on one line that can be copied."""
    for line in explanation.lines():
        if line.startswith("  → "):
            click.echo(line, err=err)
        else:
            say(line, err=err)
