"""Defines the group of commands and its global options, and turns an error into one line and an exit status."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gpuqueue import __version__
from gpuqueue.cli import completion, control, database, doctor, gpu, initialise, jobs, logs, plugins, status, submit, top, worker
from gpuqueue.cli.rendering import error_line
from gpuqueue.cli.session import AppSession, Session
from gpuqueue.contract.hookspecs import RegisterCommandsDetails
from gpuqueue.domain.errors import GPUQueueError, StoreError, UsageError, describe

__all__ = ["main"]

FAILED, WRONG, INTERRUPTED = 1, 2, 130
EXIT_STATUSES = """
\b
Exit status of every command:
  0    success
  1    failure: the awaited job, a check or a plugin failed, or a question was
       answered with no
  2    wrong usage, or the database cannot be used; nothing was changed
  130  interrupted by Ctrl-C; jobs keep running

\b
Results go to stdout; notes, warnings and errors go to stderr. Every command
that reads has --json; its help lists the keys, which are stable. NO_COLOR=1
turns colours off.
"""
TRACEBACK = "GPUQUEUE_TRACEBACK"  # set to 1 to print an error's traceback


class Commands(click.Group):
    """The group: its own commands are always there; plugins' commands load only when they are listed or called."""

    _asked_plugins = False
    session: AppSession | None = None

    def list_commands(self, context: click.Context) -> list[str]:
        self._add_plugins_commands(context)
        return [*self.own, *sorted(self.commands.keys() - set(self.own))]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.own:
            self._add_plugins_commands(context)
        return super().get_command(context, name)

    @property
    def own(self) -> tuple[str, ...]:
        return OWN_COMMANDS

    def _add_plugins_commands(self, context: click.Context) -> None:
        if self._asked_plugins:
            return
        self._asked_plugins = True
        own = dict(self.commands)
        try:
            session = self.session or Session.of_parameters(context.params)
            with context.scope(cleanup=False):  # so that a warning knows whether a shell completes a word
                session.plugins().tell("register_commands", RegisterCommandsDetails(self))
        except GPUQueueError as error:
            if context.resilient_parsing:  # a shell completes a word
                return
            click.echo(f"Warning: cannot load the commands of plugins: {error}", err=True)
        # A plugin adds commands; it does not replace what `gpuqueue status` means.
        self.commands.update(own)


def _new_group(session: AppSession | None) -> Commands:
    """Create a new group for each call, so that commands added by plugins stay with that call."""

    @click.group(
        cls=Commands,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        help="A job queue in one SQLite file, for applications whose interactive and background AI work share one small GPU.",
        epilog=EXIT_STATUSES,
    )
    @click.option(
        "--config",
        metavar="FILE",
        shell_complete=completion.files,
        help="The configuration file. Default: $GPUQUEUE_CONFIG, else ./gpuqueue.toml if it exists.",
    )
    @click.option(
        "--database",
        metavar="FILE",
        shell_complete=completion.files,
        help="The database file; overrides the one in the configuration.",
    )
    @click.version_option(__version__, prog_name="gpuqueue")
    @click.pass_context
    def group(context: click.Context, config: str | None, database: str | None) -> None:
        if session is not None and (config is not None or database is not None):
            raise UsageError(
                f"`{shlex.join(session.program)}` uses the configuration and database of its application; "
                "remove --config and --database"
            )
        context.obj = context.with_resource(session or Session(config, database))

    for command in COMMANDS:
        group.add_command(command)
    assert isinstance(group, Commands)
    group.session = session
    return group


@click.command("demo", short_help="Run a demo on a simulated GPU.")
@click.option("--json", "json_output", is_flag=True, help="Print what happened as JSON; its keys are listed above.")
@click.option("--ollama", "ollama_url", metavar="URL", help="Use this Ollama instead of a simulated one.")
@click.option("--model", metavar="MODEL", help="The model to use; with --ollama, one that it has.")
@click.option("--keep", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep the demo's files in this folder.")
def demo(json_output: bool, ollama_url: str | None, model: str | None, keep: Path | None) -> int:
    """Run a demo on a simulated GPU: interactive and background work, and an outage.

    Needs no GPU, no Ollama and no configuration.

    \b
    Keys: completed, failed, lost (numbers of jobs),
      realtime: {wait_p50_s, wait_p95_s},
      batch: {completed, holds: {REASON: number}},
      rfa: {wait_p95_s},
      gpu: {overlaps, peak_bytes, budget_bytes, loads},
      outage: {realtime_answer, batch_snoozed, recovered} or null.
    """
    from importlib import import_module

    status: int = import_module("gpuqueue.cli.demo").run(json_output=json_output, ollama_url=ollama_url, model=model, keep=keep)
    return status


# In the order in which a newcomer needs them; the help lists them in this order.
COMMANDS: tuple[click.Command, ...] = (
    demo,
    initialise.init,
    worker.worker,
    submit.submit,
    status.status,
    top.top,
    jobs.list_jobs,
    jobs.show_job,
    logs.logs,
    jobs.explain,
    control.pause,
    control.resume,
    control.cancel,
    control.retry,
    gpu.gpu,
    doctor.doctor,
    plugins.plugins,
    database.db,
    completion.completion,
)
OWN_COMMANDS = tuple(command.name or "" for command in COMMANDS)


def main(argv: Sequence[str] | None = None, *, session: AppSession | None = None) -> int:
    """Run a command line and return its exit status; every error is one clear line on stderr.

    With a `session` it runs as that application's own command line: `main(words, session=AppSession(gq, "flask", "gpuqueue"))`.
    """
    warnings = _Warnings()
    logging.getLogger("gpuqueue").addHandler(warnings)
    try:
        return _run(None if argv is None else list(argv), session)
    except BrokenPipeError:
        # The reader closed the pipe (`gpuqueue jobs | head`); Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        gone = " (the current folder was deleted)" if isinstance(error, FileNotFoundError) and not error.filename else ""
        return _fail(error, f"{error.strerror or error}" + (f": {error.filename}" if error.filename else gone), FAILED)
    except Exception as error:
        return _fail(error, f"{type(error).__name__}: {error} (unexpected; set {TRACEBACK}=1 for a traceback)", FAILED)
    finally:
        logging.getLogger("gpuqueue").removeHandler(warnings)


def _run(argv: list[str] | None, session: AppSession | None) -> int:
    program = "gpuqueue" if session is None else shlex.join(session.program)
    try:
        status: Any = _new_group(session).main(args=argv, prog_name=program, standalone_mode=False, color=_color())
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        return INTERRUPTED
    except (UsageError, StoreError) as error:
        return _fail(error, str(error), WRONG)
    except GPUQueueError as error:
        return _fail(error, str(error), FAILED)
    return status if isinstance(status, int) else 0


def _fail(error: BaseException, words: str, status: int) -> int:
    if os.environ.get(TRACEBACK) == "1":
        traceback.print_exception(error)
    error_line(words)
    return status


def _color() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None


class _Warnings(logging.Handler):
    """Prints a warning of the library as one line; the command `worker` has a full log instead."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        context = click.get_current_context(silent=True)
        if context is not None and context.resilient_parsing:  # a shell completes a word, and would show this next to it
            return
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        cause = "" if error is None else f": {describe(error)}"
        try:
            click.echo(f"Warning: {record.getMessage()}{cause}", err=True)
        except Exception:  # as every handler does: a failure to print must not stop the code that logs
            self.handleError(record)
