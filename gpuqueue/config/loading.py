"""Finds and loads the configuration: arguments override environment variables, which override the file.

Reads the file once and starts nothing; the card, the Ollama and the database are checked later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from gpuqueue.config.plugin_tables import ENVIRONMENT, PluginTables
from gpuqueue.config.sections import (
    BACKEND_KEYS,
    DEFAULT_RETENTION,
    DEVICE_KEYS,
    RETENTION_KEYS,
    WORKER_KEYS,
    WorkerSettings,
    backend_names,
    needs_ollama,
    read_backends,
    read_devices,
    read_models,
    read_plugins,
    read_queues,
    read_retention,
    read_worker,
)
from gpuqueue.config.table import Setting, Table, worded
from gpuqueue.domain.errors import ConfigurationError, did_you_mean
from gpuqueue.domain.job import State
from gpuqueue.domain.settings import BackendSettings, DeviceSettings, ModelSettings, PlacementMode, QueueSettings

__all__ = ["Config", "WorkerSettings", "database_path", "database_url"]

DEFAULT_FILE = "gpuqueue.toml"
DEFAULT_DATABASE = "sqlite:///gpuqueue.db"
DEFAULT_MAX_PAYLOAD_BYTES = 16 * 2**20
LARGEST_PAYLOAD_BYTES = 10**9  # SQLite stores no larger text

ROOT_KEYS = (
    "database",
    "synchronous",
    "max_payload",
    "placement",
    "gpu",
    "ollama",
    "models",
    "queues",
    "worker",
    "retention",
    "plugins",
)
ENVIRONMENT_KEYS = ("database", "synchronous", "max_payload", "placement")
ENVIRONMENT_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "gpu": DEVICE_KEYS,
    "ollama": BACKEND_KEYS,
    "worker": WORKER_KEYS,
    "retention": RETENTION_KEYS,
}

TWICE = re.compile("twice|overwrite|immutable|[Dd]uplicate")  # in the words of tomllib
TWICE_HINT = "A table or a key is there twice: merge the two. Only [[gpu]] and [[ollama]] can be given more than once"
QUOTES_HINT = 'Strings need quotes (budget = "5GB"), and so do names with a colon or a dot ([models."gemma4:e4b"])'

Synchronous = Literal["normal", "full"]


@dataclass(frozen=True)
class Config:
    """The whole configuration, validated."""

    database: str  # sqlite:///… with an absolute path
    synchronous: Synchronous = "normal"
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
    devices: tuple[DeviceSettings, ...] = ()
    backends: tuple[BackendSettings, ...] = ()
    models: Mapping[str, ModelSettings] = field(default_factory=dict)
    queues: Mapping[str, QueueSettings] = field(default_factory=dict)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    retention: Mapping[State, float | None] = field(default_factory=lambda: dict(DEFAULT_RETENTION))
    placement: PlacementMode = "pack"
    plugins_blocked: tuple[str, ...] = ()
    plugin_tables: PluginTables = field(default_factory=PluginTables, compare=False, repr=False)  # [thermal] belongs to a plugin
    path: Path | None = None  # the file it was read from

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None, *, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Config:
        """Read a configuration file, or none; environment variables override it, and `overrides` override both.

        Overrides are named as in the file, and a section is a mapping: database="jobs.db", worker={"threads": 2}.
        None counts as not given. A section that may belong to a plugin is kept; the queue object rejects it if none of its
        plugins knows it.
        Raises: ConfigurationError naming the file, variable or argument, the key, and what to do.
        """
        file = None if path is None else Path(os.path.abspath(Path(path).expanduser()))
        source = str(file or "configuration")
        in_toml = Table(_read_toml(file) if file else {}, key="", origin=lambda key: f"{source}: {key}" if key else source)
        plugins_in_file, root = in_toml.without_tables(ROOT_KEYS)
        in_file = root.get("database")
        root.overlay(Table(_environment(environ), key="", origin=_variable, is_text=True))
        arguments = Table(_given(overrides), key="", origin=lambda key: f"argument {key}")
        plugins_in_arguments, known_arguments = arguments.without_tables(ROOT_KEYS)
        root.overlay(known_arguments)
        root.expect(ROOT_KEYS)

        # A path in the file, or the default path, is relative to the file.
        folder = file.parent if file and root.get("database") is in_file else Path.cwd()
        devices = read_devices(root.sequence("gpu", '[gpu] and budget = "5GB"'))
        models = read_models(root.tables("models", '[models."gemma4:e4b"] and vram = "4.5GB"'), devices)
        ollamas = root.sequence("ollama", '[ollama] and url = "http://127.0.0.1:11434"')
        names = backend_names(ollamas)
        queues = read_queues(
            root.tables("queues", "[queues.NAME]"), devices, backends=names, has_ollama=root.has("ollama") or bool(models)
        )
        return cls(
            database=_database(root, folder),
            synchronous=cast(Synchronous, root.choice("synchronous", "normal", ("normal", "full"))),
            max_payload_bytes=root.size("max_payload", DEFAULT_MAX_PAYLOAD_BYTES, maximum=LARGEST_PAYLOAD_BYTES),
            devices=devices,
            backends=read_backends(
                (ollamas or [root.table("ollama", "[ollama]")]) if needs_ollama(root, models, queues) else (),
                devices,
                ollama_host=_ollama_host(environ),
            ),
            models=models,
            queues=queues,
            worker=read_worker(root.table("worker", "[worker] and threads = 8")),
            retention=read_retention(root.table("retention", '[retention] and completed = "7d"')),
            placement=cast(PlacementMode, root.choice("placement", "pack", get_args(PlacementMode))),
            plugins_blocked=read_plugins(root.table("plugins", '[plugins] and block = ["windows"]')),
            plugin_tables=PluginTables(
                plugins_in_file,
                plugins_in_arguments,
                variables=_others(environ),
                own=ROOT_KEYS,
                own_variables=_own_variables(),
                source=source,
            ),
            path=file,
        )

    @classmethod
    def default(cls, database: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] = os.environ) -> Config:
        """Return the configuration without a file: this database, and the environment variables."""
        return cls.load(None, environ=environ, database=database)

    @staticmethod
    def find(explicit: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ) -> Path | None:
        """Find the configuration file: the one given, the one in GPUQUEUE_CONFIG, ./gpuqueue.toml if it exists, or none."""
        named = explicit or environ.get(f"{ENVIRONMENT}CONFIG")
        if named:
            return Path(named)
        here = Path(DEFAULT_FILE)
        return here if here.exists() else None


def database_url(database: str | os.PathLike[str], *, relative_to: str | os.PathLike[str]) -> str:
    """Convert a path or a `sqlite:///` URL to a URL with an absolute path. Raises: ConfigurationError."""

    def wrong(problem: str) -> ConfigurationError:
        return ConfigurationError(
            f'the database {text!r} {problem}. Expected for example "{DEFAULT_DATABASE}" or "/var/lib/app/gpuqueue.db"'
        )

    text = os.fspath(database)
    scheme, is_url, rest = text.strip().partition("://")
    if is_url and scheme not in {"sqlite", "sqlite+pysqlite"}:
        raise wrong("is not an SQLite file; gpuqueue supports only SQLite")
    if is_url and rest and not rest.startswith("/"):
        raise wrong("needs a third slash, and a fourth before an absolute path")
    place = rest[1:] if is_url else scheme
    if ":memory:" in place or (is_url and not place):
        raise wrong("is in memory, where other processes cannot see its jobs; use a file")
    if not place:
        raise wrong("does not name a file")
    if "?" in place or "\0" in place or place.startswith("file:"):
        raise wrong("is not a plain path; options after '?' are not supported")
    path = Path(os.path.abspath(Path(relative_to) / Path(place).expanduser()))
    if path.is_dir():
        raise wrong("is a folder; use a file in it")
    return f"sqlite:///{path}"


def database_path(url: str) -> Path:
    """Return the file of a database URL; a relative path is relative to the current folder."""
    return Path(database_url(url, relative_to=Path.cwd()).removeprefix("sqlite:///"))


def _read_toml(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        # Some editors start a file with a byte order mark, which TOML does not allow.
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(f"no configuration file at {str(file)!r}; create one with: gpuqueue init") from None
    except IsADirectoryError:
        example = str(file / DEFAULT_FILE)
        raise ConfigurationError(f"{str(file)!r} is a folder; use a file in it, for example {example!r}") from None
    except OSError as error:
        raise ConfigurationError(f"the configuration file {str(file)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"the configuration file {str(file)!r} is not UTF-8 text (byte {error.start})") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = text.split("\n")[int(found[1]) - 1].strip() if found else ""
        shown = f", in: {line}" if line else ""
        hint = TWICE_HINT if TWICE.search(str(error)) else QUOTES_HINT
        raise ConfigurationError(f"{file} is not valid TOML: {error}{shown}\n{hint}") from None
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{file} has a number of too many digits, or lists in too many others") from None


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Collect the settings among the environment variables; an empty variable counts as not set."""
    found: dict[str, Any] = {}
    for key in ENVIRONMENT_KEYS:
        if value := environ.get(_variable(key, "")):
            found[key] = value
    for section, keys in ENVIRONMENT_SECTIONS.items():
        names = {_variable(f"{section}.{key}", ""): key for key in keys}
        for name, value in environ.items():
            if not name.startswith(_variable(f"{section}.", "")):
                continue
            if name not in names:
                near = did_you_mean(name, names)
                raise ConfigurationError(f"unknown environment variable {name}{near}. Variables: {', '.join(names)}")
            if value:
                found.setdefault(section, {})[names[name]] = value
    return found


def _others(environ: Mapping[str, str]) -> dict[str, str]:
    """Collect the variables with gpuqueue's prefix that are not its own."""
    own = _own_variables()
    return {name: value for name, value in environ.items() if name.startswith(ENVIRONMENT) and name not in own}


def _own_variables() -> set[str]:
    sections = (f"{section}.{key}" for section, keys in ENVIRONMENT_SECTIONS.items() for key in keys)
    return {_variable(key, "") for key in (*ENVIRONMENT_KEYS, "config", *sections)}


def _variable(key: str, prefix: str = "environment variable ") -> str:
    return f"{prefix}{ENVIRONMENT}{key.upper().replace('.', '_')}"


def _given(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _given(value) if isinstance(value, Mapping) else value for key, value in overrides.items() if value is not None}


def _ollama_host(environ: Mapping[str, str]) -> Setting | None:
    value = environ.get("OLLAMA_HOST")
    return Setting(value, "environment variable OLLAMA_HOST", is_text=True) if value else None


def _database(root: Table, folder: Path) -> str:
    setting = root.get("database")
    if setting is None:
        return database_url(DEFAULT_DATABASE, relative_to=folder)
    text = root.text("database", "", example=f'database = "{DEFAULT_DATABASE}"')
    return worded(setting, lambda: database_url(text, relative_to=folder))
