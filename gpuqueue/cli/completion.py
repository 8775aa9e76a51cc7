"""Completes words in a shell: the command that prints the script, and the values to offer.

A shell asks at every TAB, so errors print nothing, and the database is read as it is, without the store, which would create or
upgrade it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from gpuqueue.cli.session import Session
from gpuqueue.contract.reads import Reads
from gpuqueue.domain.job import FINISHED, WAITING, State
from gpuqueue.store.database import as_it_is

SHELLS = ("bash", "zsh", "fish")
RECENT = 1000  # ids are offered from this many of the newest jobs
OFFERED = 30
PATIENCE_S = 0.2

Returned = TypeVar("Returned")
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


@click.command(short_help="Print the completion script for your shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, queues, states and job ids in a shell.

    \b
    bash   in ~/.bashrc:  eval "$(gpuqueue completion bash)"
    zsh    in ~/.zshrc, after compinit:  eval "$(gpuqueue completion zsh)"
    fish   gpuqueue completion fish > ~/.config/fish/completions/gpuqueue.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # Not the class's own method: for bash, that runs bash to ask for its version.
    click.echo(ShellComplete.source(kind(context.find_root().command, {}, "gpuqueue", "_GPUQUEUE_COMPLETE")))


def queue_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a queue in the database or the configuration."""
    names = set(_read(context, lambda reads: reads.queue_names()) or ())
    names |= set(_quietly(lambda: _session(context).config.queues) or ())
    return _beginning(incomplete, dict.fromkeys(sorted(names)))


def state_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a job's state."""
    return _beginning(incomplete, dict.fromkeys(State))


def finished_states(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the state of a finished job."""
    return _beginning(incomplete, dict.fromkeys(FINISHED))


def files(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


def job_ids(*states: State) -> Completer:
    """Complete the id of a recent job in one of these states; without states, of any recent job."""

    def complete(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        recent = _read(context, lambda reads: reads.headlines(limit=RECENT)) or ()
        rows = [row for row in recent if not states or row[1] in states]
        found = {str(job_id): f"{state} {task} in {queue}" for job_id, state, queue, task in rows}
        return _beginning(incomplete, found)[:OFFERED]

    return complete


job_to_show = job_ids()
job_to_cancel = job_ids(State.RUNNING, *WAITING)
job_to_retry = job_ids(State.DISCARDED, State.CANCELLED, State.RETRYABLE, State.SCHEDULED)


def _beginning(incomplete: str, values: dict[str, str | None] | dict[str, str] | dict[State, Any]) -> list[CompletionItem]:
    return [CompletionItem(str(value), help=about) for value, about in values.items() if str(value).startswith(incomplete)]


def _session(context: click.Context) -> Session:
    return Session.of_parameters(context.find_root().params)


def _read(context: click.Context, what: Callable[[Reads], Returned]) -> Returned | None:
    def read() -> Returned:
        with as_it_is(_session(context).database, patience_s=PATIENCE_S) as reads:
            return what(reads)

    return _quietly(read)


def _quietly(read: Callable[[], Returned]) -> Returned | None:
    try:
        return read()
    except Exception:
        return None
