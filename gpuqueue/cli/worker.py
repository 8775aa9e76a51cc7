"""Runs one worker process with its log on stderr: the command `worker`."""

from __future__ import annotations

import logging
import os
import sys
from typing import get_args

import click

from gpuqueue.cli.completion import queue_names
from gpuqueue.cli.session import Session, app_option, pass_session
from gpuqueue.domain.settings import MOST_THREADS, LogFormat
from gpuqueue.logs import ATTRIBUTE, JSONFormatter, configure_logging

LEVELS = ("debug", "info", "warning", "error")


@click.command()
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="QUEUE",
    shell_complete=queue_names,
    help="Serve only this queue; may be repeated.",
)
@app_option
@click.option("--threads", type=click.IntRange(1, MOST_THREADS), metavar="N", help="How many jobs without a GPU may run at once.")
@click.option("--burst", is_flag=True, help="Exit when nothing more can start now.")
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="N", help="Exit after running N jobs.")
@click.option(
    "--accept-config", is_flag=True, help="Make this configuration the shared one, even if a running worker has another."
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="The lowest level to log.")
@click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    help="Lines for people, or one JSON object per line. Default: [worker] log_format, else text.",
)
@pass_session
def worker(
    session: Session,
    queues: tuple[str, ...],
    app: str | None,
    threads: int | None,
    burst: bool,
    max_jobs: int | None,
    accept_config: bool,
    log_level: str,
    log_format: LogFormat | None,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C.

    The first Ctrl-C lets running jobs finish within [worker] grace; the second returns them to the queue at once. With --app,
    the application's queue object brings its own configuration, database and tasks.

    The log on stderr has one line for each event, with its job and lease. As JSON, each line is an object with at, level,
    logger, event, worker, job, lease, queue, task, message and traceback, null where there is none, then the event's own
    fields. Other loggers use the same format, unless the application has set its own handlers on the root logger.
    """
    from gpuqueue.worker import Worker

    gq = session.queue(app)
    log_format = log_format or gq.config.worker.log_format

    class TalkingWorker(Worker):
        """Reports what it does on a signal."""

        def request_stop(self) -> None:
            again = self._is_stopping
            super().request_stop()
            words = (
                "returning running jobs to the queue" if again else "stopping; a second signal returns running jobs to the queue"
            )
            if log_format == "json":
                words = _stopping(words, self.id, at_once=again)
            # Written directly: a signal handler could interrupt a buffered stream in the middle of a line.
            os.write(2, f"{words}\n".encode())

    running = TalkingWorker(
        gq, queues=queues or None, threads=threads, burst=burst, max_jobs=max_jobs, accept_config=accept_config
    )
    logging.getLogger("gpuqueue").handlers.clear()  # warnings have their line in the log
    restore = configure_logging(log_format, level=log_level, worker=lambda: running.id)
    try:
        gq.queue_names()  # opens the database, so that an error in it comes first
        if log_format == "text":
            served = ", ".join(queues) if queues else f"all queues ({', '.join(sorted(gq.queue_names()))})"
            print(f"database: {gq.database}\nqueues: {served}", file=sys.stderr, flush=True)
        running.run()
    finally:
        restore()


def _stopping(words: str, worker_id: str, *, at_once: bool) -> str:
    """Return the JSON log line for a stop by signal."""
    record = logging.LogRecord("gpuqueue.worker", logging.INFO, __file__, 0, words, None, None)
    setattr(record, ATTRIBUTE, {"event": "worker_stopping", "worker": worker_id, "at_once": at_once})
    return JSONFormatter().format(record)
