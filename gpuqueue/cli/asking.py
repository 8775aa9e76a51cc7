"""Asks for confirmation before a command changes several jobs."""

from __future__ import annotations

import sys

import click

from gpuqueue.cli.rendering import note

yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def may_go_on(question: str, *, count: int, yes: bool) -> bool:
    """Ask at a terminal if more than one job is affected; return True without asking anywhere else."""
    if yes or count <= 1 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    if click.confirm(question, err=True):
        return True
    note("nothing was changed")
    return False
