"""Provides `manage.py gpuqueue_worker`: a worker for the tasks of this project."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import autoreload

from gpuqueue.domain.errors import GPUQueueError
from gpuqueue.integrations.django.lookup import queue
from gpuqueue.integrations.django.management.command_line import run
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS

if TYPE_CHECKING:
    from gpuqueue.integrations.django.queues import DjangoQueue
    from gpuqueue.worker import Worker

ALL = "*"
LEVELS = ("error", "info", "debug", "debug")  # by Django's verbosity


class Reloader(autoreload.StatReloader):
    """Django's reloader, which misses the change of a file before it has looked at that file once."""

    def __init__(self) -> None:
        super().__init__()
        self._has_looked = threading.Event()

    def snapshot_files(self) -> Iterator[Any]:
        yield from super().snapshot_files()
        self._has_looked.set()

    def after_first_look(self, work: Callable[[], Any]) -> None:
        """Wait for the first look, then do this."""
        self._has_looked.wait()
        work()


class Command(BaseCommand):
    """Runs jobs until SIGTERM or Ctrl-C; a second Ctrl-C returns running jobs to the queue at once."""

    _begin: Callable[[], Any]
    help = "Run this project's tasks until SIGTERM or Ctrl-C; a second Ctrl-C returns running jobs to the queue at once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--queue-name", default=ALL, metavar="NAMES", help="The queues to serve, separated by commas. Default: all."
        )
        parser.add_argument(
            "--exclude-queues",
            default="",
            metavar="NAMES",
            help="Queues not to serve, separated by commas. Queues created later are not served either.",
        )
        parser.add_argument("--batch", action="store_true", help="Exit when no more tasks can start now.")
        parser.add_argument("--max-tasks", type=int, metavar="N", help="Exit after N tasks.")
        parser.add_argument("--threads", type=int, metavar="N", help="How many tasks without a GPU run at once.")
        parser.add_argument("--reload", action="store_true", help="Restart when the code changes; for development.")
        parser.add_argument("--backend", default=DEFAULT_ALIAS, metavar="ALIAS", help="The entry of TASKS. Default: default.")
        parser.add_argument(
            "--accept-config",
            action="store_true",
            help="Replace the shared settings with these, although a running worker has others.",
        )

    def execute(self, *args: Any, **options: Any) -> Any:
        for name in ("max_tasks", "threads"):
            if options[name] is not None and options[name] < 1:
                raise CommandError(f"--{name.replace('_', '-')} must be at least 1, not {options[name]}")
        if not options["reload"]:
            return super().execute(*args, **options)
        if options["batch"] or options["max_tasks"]:
            raise CommandError("--reload cannot be combined with --batch or --max-tasks")
        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            _restart_until_ended(self.stderr)
            return None
        reloader = Reloader()
        # This covers the system checks too, which import the project's views: after an error the reloader waits for a change.
        try:
            autoreload.check_errors(super().execute)(*args, **options)
        except (CommandError, GPUQueueError) as error:
            self._begin = partial(self.stderr.write, f"{type(error).__name__}: {error}")
        except Exception:
            self._begin = partial(self.stderr.write, traceback.format_exc())
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with suppress(KeyboardInterrupt):
            autoreload.start_django(reloader, reloader.after_first_look, self._begin)
        return None

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            gq = queue(options["backend"])
            gq.discover()
        except (GPUQueueError, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=2) from None
        queues = _queues(gq, options)
        if options["reload"]:
            self._begin = _worker(gq, options, queues).start
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
            raise CommandError("--exclude-queues and --queue-name cannot be combined; use one of them")
        if not named:
            raise CommandError("--queue-name names no queue; omit it to serve all queues")
        gq.expect_queues(named)
        return named
    return tuple(sorted(gq.queue_names() - excluded)) if excluded else None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _restart_until_ended(stderr: Any) -> None:
    """Keep a process of Django's reloader running; if Django could not start in it, wait for a change and start another."""
    while True:
        try:
            autoreload.run_with_reloader(None)
        except SystemExit as ended:
            if ended.code != 1:
                raise
        reloader = Reloader()
        tell = partial(stderr.write, "The project cannot be loaded; waiting for a change.")
        threading.Thread(target=reloader.after_first_look, args=(tell,), daemon=True).start()
        for app in apps.get_app_configs():
            reloader.watch_dir(app.path, "**/*.py")
        with suppress(SystemExit):  # with which Django's reloader ends at a change
            reloader.run_loop()


def _worker(gq: DjangoQueue, options: dict[str, Any], queues: tuple[str, ...] | None) -> Worker:
    """Make a worker with its own threads, which stops with the process. Raises: UsageError."""
    from gpuqueue.logs import configure_logging
    from gpuqueue.worker import Worker

    worker = Worker(gq, queues=queues, threads=options["threads"], accept_config=options["accept_config"])
    configure_logging(gq.config.worker.log_format or "text", level=LEVELS[options["verbosity"]], worker=lambda: worker.id)
    # Running jobs return to the queue, to run again with the new code.
    atexit.register(worker.stop, grace_s=0)
    return worker
