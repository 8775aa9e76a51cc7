"""Provides `manage.py gpuqueue …`: gpuqueue's whole command line, for the queue of this project's settings."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from gpuqueue.integrations.django.management.command_line import run, take_option
from gpuqueue.integrations.django.tasks_api import DEFAULT_ALIAS


class Command(BaseCommand):
    """Passes its arguments on, except `--backend`, which names the entry of TASKS."""

    help = "Run a gpuqueue command; `manage.py gpuqueue --help` lists them."
    requires_system_checks: Sequence[Any] = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("words", nargs=REMAINDER)

    def run_from_argv(self, argv: list[str]) -> None:
        words = list(argv[2:])
        for djangos in ("--settings", "--pythonpath"):  # already handled
            take_option(words, djangos)
        alias = take_option(words, "--backend") or DEFAULT_ALIAS
        program = os.path.basename(argv[0])
        status = run(alias, words, program=("python", program) if program.endswith(".py") else (program,))
        if status:
            sys.exit(status)

    def handle(self, *args: Any, **options: Any) -> None:
        words = list(options["words"])
        alias = take_option(words, "--backend") or DEFAULT_ALIAS
        # The command line ends its lines itself; Django's wrapper would add a second line end.
        with redirect_stdout(self.stdout._out), redirect_stderr(self.stderr._out):
            status = run(alias, words)
        if status:
            raise CommandError(f"gpuqueue {' '.join(words)} ended with status {status}", returncode=status)
