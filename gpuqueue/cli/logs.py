"""Shows what a job logged, attempt by attempt, until now or until it ends: the command `logs`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import click

from gpuqueue.cli.jobs import job_id_argument, show_explanation
from gpuqueue.cli.rendering import note, say
from gpuqueue.cli.session import Session, pass_session
from gpuqueue.cli.submit import INTERRUPTED, NoRepetition
from gpuqueue.client.handle import JobHandle
from gpuqueue.client.queue import GPUQueue
from gpuqueue.domain.job import FINISHED, WAITING, Job, LogLine, State
from gpuqueue.domain.moments import clock, iso

LINE, BEGAN, ENDED = "line", "began", "ended"
# How an attempt that did not complete ended, as `attempts.outcome` has it.
OUTCOMES = {
    "retried": "failed",
    "snoozed": "was postponed and does not count",
    "discarded": "failed permanently",
    "cancelled": "was cancelled",
    "released": "was returned to the queue and does not count",
    "crashed": "died with its worker",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the command's output; `seq` numbers the lines that the job itself logged."""

    kind: str
    at: datetime
    attempt: int
    lease: int
    message: str
    seq: int | None = None
    outcome: str | None = None


@click.command(short_help="Show what a job logged, and follow it.")
@job_id_argument
@click.option("--follow", is_flag=True, help="Print new lines as they come, until the job ends.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line; its keys are listed above.")
@pass_session
def logs(session: Session, job_id: int, follow: bool, as_json: bool) -> int:
    """Show what a job logged with current_job().log(…), and where its attempts started and failed.

    Ctrl-C stops following; the job continues. Exit status 0 however the job ended, 130 after Ctrl-C.

    \b
    Keys: kind ("line", "began": another attempt, or "ended": an attempt that
      did not complete), at, attempt, lease, message, seq (null: not a line),
      outcome (null: not an end; else retried, snoozed, discarded,
      cancelled, released or crashed).
    """
    gq = session.existing_queue()
    handle = gq.job(job_id)
    story = _Story(gq, job_id)
    if not follow:
        entries = list(story.news())
        for entry in entries:
            _show(entry, gq, as_json)
        if handle.state not in FINISHED:
            note(f"job {job_id} is {handle.state}. Follow it: {session.command('logs', job_id, '--follow')}")
        elif not entries:
            note(f"job {job_id} is {handle.state} and logged nothing")
        return 0
    try:
        _follow(session, gq, handle, story, as_json)
    except KeyboardInterrupt:
        note(f"\njob {job_id} continues. Cancel it: {session.command('cancel', job_id)}")
        return INTERRUPTED
    return 0


def _follow(session: Session, gq: GPUQueue, handle: JobHandle, story: _Story, as_json: bool) -> None:
    told: tuple[object, ...] = ()
    with NoRepetition() as quiet:
        for job in handle.watch():
            for entry in story.news():
                _show(entry, gq, as_json)
            if job.state in WAITING and (job.state, job.lease) != told:
                explanation = handle.explain()
                quiet.tell(explanation)
                show_explanation(session.explanation(explanation, job.queue), err=True)
            told = (job.state, job.lease)
    note(f"job {handle.id} is {handle.state}")


def _show(entry: Entry, gq: GPUQueue, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**asdict(entry), "at": iso(entry.at)}, ensure_ascii=False))
        return
    time = clock(entry.at, now=gq.now(), exact=True)
    margin = len(time) + 2
    first, *others = entry.message.splitlines() or [""]
    if entry.kind is not LINE:
        say(f"{time}  {click.style(f'— {first}', bold=True)}", hang=margin)
    else:
        click.echo(f"{time}  {first}")
    for line in others:
        click.echo(" " * margin + line)


class _Story:
    """Yields what a job logged and how its attempts went, each entry once."""

    def __init__(self, gq: GPUQueue, job_id: int) -> None:
        self._gq = gq
        self._job_id = job_id
        self._seq = 0
        self._lease = 0  # of the attempt that is being shown
        self._ended: set[int] = set()

    def news(self) -> Iterator[Entry]:
        """Yield what is new since the last call, in the order in which it happened."""
        with self._gq.store.snapshot() as reads:
            job = reads.job(self._job_id)
            lines = reads.logs(self._job_id, self._seq)
            attempts = {attempt["lease"]: attempt for attempt in reads.timeline(self._job_id)}
        # A lease without an end is that of the latest attempt, even if a rescue has raised the job's own lease since.
        by_attempt: dict[int, list[LogLine]] = {lease: [] for lease in attempts.keys() - self._ended}
        if job.state in (State.RUNNING, State.COMPLETED) and job.lease not in attempts:
            by_attempt[job.lease] = []
        for line in lines:
            by_attempt.setdefault(line.lease if line.lease in attempts else job.lease, []).append(line)
            self._seq = line.seq
        for lease in sorted(by_attempt):
            yield from self._attempt(lease, by_attempt[lease], attempts.get(lease), job)

    def _attempt(self, lease: int, lines: list[LogLine], ended: dict[str, Any] | None, job: Job) -> Iterator[Entry]:
        number = job.attempt if ended is None else ended["attempt"]
        if lease > self._lease:
            if self._lease:
                began_at = job.started_at if ended is None else ended["started_at"]
                worker = job.worker_id if ended is None else ended["worker"]
                words = f"attempt {number} of {job.max_attempts} started" + (f" on {worker}" if worker else "")
                yield Entry(BEGAN, began_at or job.enqueued_at, number, lease, words)
            self._lease = lease
        for line in lines:
            yield Entry(LINE, line.at, number, lease, line.message, seq=line.seq)
        if ended is not None and lease not in self._ended:
            self._ended.add(lease)
            # The error of a cancelled attempt says nothing more.
            why = f": {ended['error'].message}" if ended["error"] and ended["outcome"] != "cancelled" else ""
            words = f"attempt {number} of {job.max_attempts} {OUTCOMES.get(ended['outcome'], ended['outcome'])}{why}"
            yield Entry(ENDED, ended["finished_at"], number, lease, words, outcome=ended["outcome"])
