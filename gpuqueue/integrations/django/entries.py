"""Resolves the settings of an entry of TASKS to a file, a configuration and one queue object for both."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connections

from gpuqueue.config.loading import Config, database_path, database_url
from gpuqueue.domain.errors import ConfigurationError, UsageError
from gpuqueue.integrations.django import temporary
from gpuqueue.integrations.django.queues import DjangoQueue, TemporaryQueue

__all__ = ["configuration_beside", "queue_of"]

OWN_FILE = "gpuqueue.db"
CONFIGURATION = "gpuqueue.toml"


def queue_of(
    alias: str, options: Mapping[str, Any], names: frozenset[str] | None, temporary_class: type[TemporaryQueue] | None = None
) -> DjangoQueue:
    """Return the queue object of these settings; a new one if they, or a database's file, have changed."""
    key = (temporary_class, repr(sorted(options.items())), names, *_surroundings())
    with _lock:
        made = _made.get(alias)
        if made is None or made[0] != key:
            made = _made[alias] = (key, _queue(alias, options, names, temporary_class))
        return made[1]


def _queue(
    alias: str, options: Mapping[str, Any], names: frozenset[str] | None, temporary_class: type[TemporaryQueue] | None
) -> DjangoQueue:
    where = f"TASKS[{alias!r}]['OPTIONS']"
    given = dict(options)
    database, file, configuration = (given.pop(name, None) for name in ("database", "file", "config"))
    if database is not None and file is not None:
        raise ConfigurationError(f"{where}: set either 'database' (an entry of DATABASES) or 'file', not both")
    path = _configuration_file(configuration)
    if database is not None:
        _expect_sqlite(database, where)
    is_named = database is None and file is None and bool(os.environ.get("GPUQUEUE_DATABASE"))
    if not is_named and (file is not None or database is not None or path is None):
        given["database"] = str(_base() / (file or (f"{database}.db" if database else OWN_FILE)))
    try:
        config = Config.load(path, **given)
    except UsageError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    own = database_path(config.database)
    is_of_tests = temporary.is_testing() and not is_named  # their jobs are not for the real workers
    shared = database or _alias_of(own, is_of_tests=is_of_tests)
    if temporary_class is not None or (is_of_tests and (shared is None or not temporary.has_test_file(shared))):
        made = temporary_class or TemporaryQueue
        return made(alias, _in_file(config, temporary.file_beside(own)), shared, names)
    if shared is not None and (database is not None or is_of_tests):
        config = _in_file(config, _file_of(shared, where))
    return DjangoQueue(alias, config, shared, names)


def _in_file(config: Config, file: Path) -> Config:
    return replace(config, database=database_url(file, relative_to=_base()))


def _base() -> Path:
    return Path(getattr(settings, "BASE_DIR", None) or Path.cwd())


def _configuration_file(given: str | os.PathLike[str] | None) -> Path | None:
    if given is not None:
        return _base() / given
    if named := os.environ.get("GPUQUEUE_CONFIG"):
        return Path(named)
    found = configuration_beside()
    return found if found.exists() else None


def configuration_beside() -> Path:
    """Return where a configuration is found automatically: next to manage.py."""
    return _base() / CONFIGURATION


def _file_of(alias: str, where: str) -> Path:
    connection = connections[alias]
    if connection.is_in_memory_db():
        raise ConfigurationError(
            f"{where}: database {alias!r} is in memory, where no worker can see it. Give the database a file, or in tests "
            "without Django's test runner use 'gpuqueue.integrations.django.EagerBackend'"
        )
    return Path(os.path.abspath(connection.settings_dict["NAME"]))


def _expect_sqlite(alias: str, where: str) -> None:
    if alias not in connections.settings:
        raise ConfigurationError(f"{where}: unknown database {alias!r}. DATABASES has: {', '.join(connections.settings)}")
    connection = connections[alias]
    if connection.vendor != "sqlite":
        raise ConfigurationError(
            f"{where}: database {alias!r} is {connection.display_name}, but gpuqueue stores its jobs in an SQLite file. Remove "
            "'database' to use a separate file"
        )


def _alias_of(path: Path, *, is_of_tests: bool) -> str | None:
    """Find the entry of DATABASES with this file or, in tests, that had it before the test runner changed it."""
    for alias in connections.settings:
        connection = connections[alias]
        if connection.vendor != "sqlite":
            continue
        names = {temporary.at_start.get(alias)} if is_of_tests else set()
        if not connection.is_in_memory_db():
            names.add(str(connection.settings_dict["NAME"]))
        for other in (Path(os.path.abspath(name)) for name in names if name):
            if other == path or (other.exists() and path.exists() and other.samefile(path)):
                return str(alias)
    return None


def _surroundings() -> tuple[Any, ...]:
    """Return all that the queues depend on in addition to their settings; Django's test runner changes much of it."""
    return (
        os.getpid() if temporary.is_testing() else None,
        tuple(str(entry.get("NAME")) for entry in connections.settings.values()),
        os.environ.get("GPUQUEUE_DATABASE", ""),
        os.environ.get("GPUQUEUE_CONFIG", ""),
        str(_base()),
    )


_lock = threading.Lock()
_made: dict[str, tuple[Any, DjangoQueue]] = {}
