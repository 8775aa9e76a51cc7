"""Runs `top` as a screen with keys at a terminal, and as lines elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time

import click

from gpuqueue.cli.session import SecondsRange, Session, pass_session
from gpuqueue.client.queue import GPUQueue

INTERVAL_S = 1.0


@click.command(short_help="Watch queues, running jobs and devices live, and act on them.")
@click.option(
    "--interval",
    "interval_s",
    type=SecondsRange(0.1, 86_400),
    metavar="SECONDS",
    help=f"Time between updates; default {INTERVAL_S:g}. A change updates the screen sooner.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Print lines N times and exit, even at a terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line; its keys are listed above.")
@pass_session
def top(session: Session, interval_s: float | None, count: int | None, as_json: bool) -> int:
    """Watch the queues, the running jobs and the devices live; act with keys.

    \b
    Tab        switch between queues and jobs
    j k ↓ ↑    select a queue or a job
    p          pause the queue; running jobs continue
    r          resume it
    c          cancel the job; y confirms
    f, Enter   follow the job's output and log; q goes back
    ? q        help, quit

    Without a terminal, or with --json or --count, it prints lines: once, or with --interval until Ctrl-C.

    \b
    Keys: at, database, workers (ids of those alive),
      queues: [{name, state (running, waiting, held, paused, no worker or
        idle), waiting, running, completed, discarded, cancelled,
        reasons (why it starts nothing): [{reason, detail, until, advice}]}],
      jobs (running, and the first waiting one of each queue): [{id, queue,
        task, model, running, reasons: [{reason, detail, until, advice}], attempt,
        max_attempts, started_at, worker, device, stopping (null, cancelled
        or makes room), progress (0 to 1), progress_note, output_tokens,
        tokens_per_s (null the first time), elapsed_s, left_s (null: not
        known)}],
      more_running (jobs beyond 100 of a queue),
      devices: [{name, card, budget_bytes, total_bytes, used_bytes,
        reserved_bytes, resident_bytes, others_bytes, models (loaded when
        last seen), models_in_use, temperature_c, utilisation_percent,
        read_at, lost}],
      windows (the next change of each): [{queue, at, change}],
      services: [{name, worker (null: no worker runs it), lag_s, error,
        noted_at}].
    Datetimes are ISO 8601 in UTC, null is unknown.
    """
    gq = session.existing_queue()
    if not (as_json or count) and _is_at_terminal():
        from gpuqueue.cli.top_screen import Screen

        return Screen(session, gq, interval_s or INTERVAL_S).run()
    _print(gq, interval_s, count, as_json)
    return 0


def _is_at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _print(gq: GPUQueue, interval_s: float | None, count: int | None, as_json: bool) -> None:
    from gpuqueue.cli.top_figures import Figuring
    from gpuqueue.cli.top_lines import lines, shape

    if count is None and interval_s is None:
        count = 1
    figuring = Figuring(gq)
    printed = 0
    while True:
        figures = figuring.read()
        text = json.dumps(shape(figures), ensure_ascii=False) if as_json else "\n".join(lines(figures))
        click.echo(text if as_json or not printed else f"\n{text}")
        printed += 1
        if printed == count:
            return
        time.sleep(interval_s or INTERVAL_S)
