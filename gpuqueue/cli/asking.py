"""Owns asking a person before much is changed; what is changed is not here."""

from __future__ import annotations

import sys

import click

from gpuqueue.cli.rendering import note

yes_option = click.option("--yes", is_flag=True, help="Do not ask, at a terminal either.")


def may_go_on(question: str, *, count: int, yes: bool) -> bool:
    """Ask at a terminal when more than one job is concerned; without a terminal nobody is there to ask."""
    if yes or count <= 1 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    if click.confirm(question, err=True):
        return True
    note("nothing was changed")
    return False
