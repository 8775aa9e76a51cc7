"""Owns the command `worker`: one worker process with its log on stderr; what the worker does is not here."""

from __future__ import annotations

import logging
import os
import sys

import click

from gpuqueue.cli.completion import queue_names
from gpuqueue.cli.session import Session, app_option, pass_session

LEVELS = ("debug", "info", "warning", "error")


@click.command()
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="QUEUE",
    shell_complete=queue_names,
    help="Serve only this queue; may be given several times.",
)
@app_option
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Jobs without a GPU that run at once.")
@click.option("--burst", is_flag=True, help="End when nothing more can start now.")
@click.option(
    "--accept-config", is_flag=True, help="Make this configuration the shared one, although a running worker has another."
)
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What goes to stderr.")
@pass_session
def worker(
    session: Session,
    queues: tuple[str, ...],
    app: str | None,
    threads: int | None,
    burst: bool,
    accept_config: bool,
    log_level: str,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C.

    The first Ctrl-C lets running jobs end within the grace ([worker] grace), the second gives them back at once. With --app the
    application's queue object brings its own configuration, database and tasks.
    """
    from gpuqueue.worker import Worker

    class TalkingWorker(Worker):
        """Says on a signal what it does about it."""

        def request_stop(self) -> None:
            again = self._stop_requested.is_set()
            super().request_stop()
            # Written straight: a signal's handler could meet a buffered stream in the middle of a line.
            words = b"giving running jobs back\n" if again else b"stopping; once more gives running jobs back at once\n"
            os.write(2, words)

    gq = session.queue(app)
    _log_to_stderr(log_level)
    gq.queue_names()  # opens the database: what is wrong with it is said before anything else
    served = ", ".join(queues) if queues else f"all queues ({', '.join(sorted(gq.queue_names()))})"
    print(f"database: {gq.database}\nqueues: {served}", file=sys.stderr, flush=True)
    TalkingWorker(gq, queues=queues or None, threads=threads, burst=burst, accept_config=accept_config).run()


def _log_to_stderr(level: str) -> None:
    logger = logging.getLogger("gpuqueue")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for other in list(logger.handlers):
        logger.removeHandler(other)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
