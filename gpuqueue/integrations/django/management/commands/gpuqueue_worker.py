"""Owns `manage.py gpuqueue_worker`: a worker for the tasks of this project; what the worker does is not here."""

from __future__ import annotations

import atexit
import sys
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.autoreload import run_with_reloader

from gpuqueue.errors import GPUQueueError
from gpuqueue.integrations.django.management.command_line import run
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue

ALL = "*"
LEVELS = ("error", "info", "debug", "debug")  # by Django's verbosity


class Command(BaseCommand):
    """Runs jobs until SIGTERM or Ctrl-C; the second Ctrl-C gives running jobs back at once."""

    help = "Run this project's tasks until SIGTERM or Ctrl-C; the second Ctrl-C gives running jobs back at once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--queue-name", default=ALL, metavar="NAMES", help="The queues to serve, with commas in between. Default: all."
        )
        parser.add_argument(
            "--exclude-queues",
            default="",
            metavar="NAMES",
            help="Queues to leave to others, with commas in between; one that comes to exist later is left out too.",
        )
        parser.add_argument("--batch", action="store_true", help="End when nothing more can start now.")
        parser.add_argument("--max-tasks", type=int, metavar="N", help="End when so many tasks have run.")
        parser.add_argument("--threads", type=int, metavar="N", help="Tasks without a GPU that run at once.")
        parser.add_argument("--reload", action="store_true", help="Begin anew when the code changes; for development.")
        parser.add_argument("--backend", default=DEFAULT_ALIAS, metavar="ALIAS", help="The entry of TASKS. Default: default.")
        parser.add_argument(
            "--accept-config",
            action="store_true",
            help="Make these settings the shared ones, although a running worker has others.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        from gpuqueue.integrations.django.queues import queue

        for name in ("max_tasks", "threads"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be at least 1, not {options[name]}")
        try:
            gq = queue(options["backend"])
            gq.discover()
        except (GPUQueueError, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=2) from None
        queues = _queues(gq, options)
        if options["reload"]:
            if options["batch"] or options["max_tasks"]:
                raise CommandError("--reload is for a worker that goes on; leave --batch and --max-tasks out")
            run_with_reloader(_run_until_reloaded, gq, options, queues)
            return
        words = ["worker", "--log-level", LEVELS[options["verbosity"]]]
        for served in queues or ():
            words += ["--queue", served]
        for name, given in (("--threads", options["threads"]), ("--max-jobs", options["max_tasks"])):
            words += [name, str(given)] if given is not None else []
        words += ["--burst"] if options["batch"] else []
        words += ["--accept-config"] if options["accept_config"] else []
        status = run(options["backend"], words)
        if status:
            sys.exit(status)


def _queues(gq: DjangoQueue, options: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the queues to serve, None for all. Raises: CommandError."""
    named, excluded = _names(options["queue_name"]), set(_names(options["exclude_queues"]))
    if ALL not in named:
        if excluded:
            raise CommandError("--exclude-queues goes with all queues; leave it out, or --queue-name")
        if not named:
            raise CommandError("--queue-name names no queue; leave it out to serve all")
        gq.expect_queues(named)
        return named
    return tuple(sorted(gq.queue_names() - excluded)) if excluded else None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run_until_reloaded(gq: DjangoQueue, options: dict[str, Any], queues: tuple[str, ...] | None) -> None:
    """Run a worker beside Django's reloader, which ends the process when the code changes."""
    from gpuqueue.logs import configure_logging
    from gpuqueue.worker import Worker

    worker = Worker(gq, queues=queues, threads=options["threads"], accept_config=options["accept_config"])
    configure_logging(gq.config.worker.log_format or "text", level=LEVELS[options["verbosity"]], worker=lambda: worker.id)
    worker.start()
    # What runs is given back, to run again with the new code.
    atexit.register(worker.stop, grace_s=0)
