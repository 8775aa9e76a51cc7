"""Finds the configuration, database and application that a command works with."""

from __future__ import annotations

import importlib
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import click

from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.loading import DEFAULT_DATABASE, DEFAULT_FILE, Config, database_path, database_url
from gpuqueue.contract.plugin_set import Plugins
from gpuqueue.decisions.policies import WORKER_POLICY_NAMES, default_policies
from gpuqueue.domain.errors import ConfigurationError, GPUQueueError, UsageError, did_you_mean
from gpuqueue.domain.explanation import Explanation
from gpuqueue.store.database import schema_version

__all__ = ["AppSession", "SecondsRange", "Session", "app_option", "json_option", "pass_session"]

DATABASE_VARIABLE = "GPUQUEUE_DATABASE"
Command = TypeVar("Command", bound=Callable[..., Any])


class SecondsRange(click.FloatRange):
    """A number of seconds; NaN, which lies in any range for click, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are listed above.")
app_option = click.option(
    "--app", metavar="MODULE:ATTRIBUTE", help="The application's GPUQueue object, for its tasks: for example shop.jobs:gq."
)


class Session:
    """The global options and the queue object that they select, which it closes at the end.

    `config` and `database` are as given on the command line, None if they were not.
    """

    def __init__(self, config: str | None = None, database: str | None = None) -> None:
        self._config_option = config
        self._database_option = database
        self._queue: GPUQueue | None = None
        self._app = ""

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, Any]) -> Session:
        return cls(parameters.get("config"), parameters.get("database"))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._queue is not None:
            self._queue.close()

    # --- what it works with ---

    @cached_property
    def config(self) -> Config:
        """The configuration of this command line. Raises: ConfigurationError, also if there is none."""
        path = self.config_path
        if path is None and self._database_option is None and not os.environ.get(DATABASE_VARIABLE):
            raise ConfigurationError(
                f"no configuration found: no --config, no GPUQUEUE_CONFIG, and no {DEFAULT_FILE} in {Path.cwd()}. "
                "Create one with `gpuqueue init`, or use a database with `gpuqueue --database FILE …`"
            )
        return Config.load(path, database=self._database_option)

    @property
    def config_path(self) -> Path | None:
        return Config.find(self._config_option)

    @property
    def new_config_path(self) -> Path:
        """Where a first configuration is found by default."""
        return Path.cwd() / DEFAULT_FILE

    def database_of_new(self, config: Path) -> str:
        """Return the URL of the database for a first configuration."""
        return DEFAULT_DATABASE

    @property
    def database(self) -> Path:
        """The absolute path of the database file."""
        return self._queue.database if self._queue is not None else database_path(self.config.database)

    def queue(self, app: str | None = None) -> GPUQueue:
        """Return the queue object: the application's with `app`, else one created from the configuration."""
        if self._queue is None:
            self._queue = GPUQueue(config=self.config) if app is None else self._of_app(app)
            self._app = app or ""
        return self._queue

    def existing_queue(self, app: str | None = None) -> GPUQueue:
        """Return the queue object for a command that must not create a database when its name was mistyped."""
        gq = self.queue(app)
        named = "--database" if self._database_option is not None else os.environ.get(DATABASE_VARIABLE) and DATABASE_VARIABLE
        if named and not gq.database.exists():
            raise UsageError(f"no database at {gq.database}; a worker or a `submit` with this {named} creates it")
        if named and schema_version(gq.database) is None:
            raise UsageError(f"{gq.database} contains no queue; a worker or a `submit` with this {named} would create one in it")
        return gq

    def present_database(self) -> Path:
        """Return the path of the database file. Raises: UsageError if it does not exist."""
        path = self.database
        if not path.exists():
            raise UsageError(f"no database at {path} yet; start a worker or run `gpuqueue submit` to create it")
        return path

    def present_queue(self) -> GPUQueue:
        """Return the queue object of an existing database file. Raises: UsageError if it does not exist."""
        self.present_database()
        return self.queue()

    def plugins(self) -> Plugins:
        """Return the installed and the default plugins except blocked ones, without a database."""
        try:
            blocked = self.config.plugins_blocked
        except GPUQueueError:
            blocked = ()  # the help must work even if the configuration is wrong
        return Plugins(default_policies(), blocked=blocked, reserved=WORKER_POLICY_NAMES)

    # --- advice that can be pasted ---

    def command(self, *words: object) -> str:
        """Return a gpuqueue command line for the same configuration and database."""
        given = []
        if self._config_option is not None:
            given += ["--config", os.path.abspath(self._config_option)]
        if self._database_option is not None:
            given += ["--database", str(self.database)]
        return shlex.join(["gpuqueue", *given, *map(str, words)])

    def worker_command(self, queue: str) -> str:
        """Return the command that starts a worker for a queue, from any folder."""
        gq = self.queue()
        words = gq.worker_command(queue).replace("MODULE:QUEUE_OBJECT", self._app or "MODULE:ATTRIBUTE")
        if self._database_option is not None and "--database" not in words:
            words = words.replace(" worker", f" --database {shlex.quote(str(gq.database))} worker", 1)
        return words

    def advice(self, text: str, queue: str) -> str:
        """Return advice with its command as one for this database."""
        text = text.replace(self.queue().worker_command(queue), self.worker_command(queue))
        return text.replace("gpuqueue ", f"{self.command()} ", 1) if text.startswith("gpuqueue ") else text

    def explanation(self, explanation: Explanation, queue: str) -> Explanation:
        """Return an explanation with all advice as commands for this database."""
        reasons = tuple(replace(hold, advice=self.advice(hold.advice, queue)) for hold in explanation.reasons)
        return replace(explanation, reasons=reasons, advice=self.advice(explanation.advice, queue))

    # --- the application ---

    def _of_app(self, app: str) -> GPUQueue:
        gq = load_app(app)
        if self._database_option is not None:
            asked = database_path(database_url(self._database_option, relative_to=Path.cwd()))
            if asked != gq.database:
                raise ConfigurationError(
                    f"--database is {asked}, but {app} uses {gq.database}; remove --database, or give the same file"
                )
        if self._config_option is not None:
            asked_config = Config.load(self._config_option, database=self._database_option)
            if gq.config.path is None:
                raise ConfigurationError(
                    f"--config is {asked_config.path}, but {app} uses {gq.database} and was created without a configuration "
                    f"file; remove --config, or create {app} with GPUQueue.from_config({str(asked_config.path)!r})"
                )
            if asked_config.path != gq.config.path or database_path(asked_config.database) != gq.database:
                raise ConfigurationError(
                    f"--config is {asked_config.path} (database {database_path(asked_config.database)}), but {app} uses "
                    f"{gq.config.path} (database {gq.database}); remove --config, or give the same file"
                )
        return gq


class AppSession(Session):
    """The session of an application's own command line, such as `flask gpuqueue`, which uses its queue object.

    `program` are the words that the command line starts with, for advice that can be pasted.
    """

    def __init__(self, gq: GPUQueue, *program: str) -> None:
        super().__init__()
        self._own = self._queue = gq
        self.program = program
        self.config = gq.config

    @property
    def config_path(self) -> Path | None:
        return self._own.config.path

    @property
    def new_config_path(self) -> Path:
        return self.config_path or super().new_config_path

    def database_of_new(self, config: Path) -> str:
        folder = os.path.realpath(config.parent)
        database = os.path.realpath(self.database)
        is_beside = os.path.commonpath([folder, database]) == folder
        return f"sqlite:///{os.path.relpath(database, folder) if is_beside else database}"

    def queue(self, app: str | None = None) -> GPUQueue:
        if app is not None:
            raise UsageError(f"`{shlex.join(self.program)}` already uses the queue of its application; remove --app")
        return self._own

    def existing_queue(self, app: str | None = None) -> GPUQueue:
        return self.queue(app)

    def plugins(self) -> Plugins:
        return self._own.plugins

    def command(self, *words: object) -> str:
        return shlex.join([*self.program, *map(str, words)])

    def worker_command(self, queue: str) -> str:
        return self.command("worker")


pass_session = click.make_pass_decorator(Session)


def load_app(app: str) -> GPUQueue:
    """Import `module:attribute` and return that GPUQueue. Raises: UsageError."""
    name, colon, attribute = app.partition(":")
    if not (name and colon and attribute):
        raise UsageError(f"--app must be module:attribute, for example shop.jobs:gq, not {app!r}")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    module = _import(name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            queues = sorted(key for key, value in vars(module).items() if isinstance(value, GPUQueue))
            known = f" Its GPUQueue objects: {', '.join(queues)}" if queues else " It has no GPUQueue object"
            raise UsageError(f"--app {app!r}: {name} has no attribute {attribute!r}{did_you_mean(attribute, queues)}.{known}")
        found = getattr(found, part)
    if not isinstance(found, GPUQueue):
        raise UsageError(f"--app {app!r} is a {type(found).__name__}, not a GPUQueue object")
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except GPUQueueError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise UsageError(f"--app: no module named {error.name!r} in {Path.cwd()} or the installed packages") from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"  # it says that itself
        raise UsageError(f"--app: importing {name!r} failed: {type(error).__name__}: {error}{where}") from error
