"""Reads `GPUQUEUE_…` in a Flask app's config as gpuqueue's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flask import Flask

from gpuqueue.config.loading import ENVIRONMENT_SECTIONS, ROOT_KEYS, Config, database_url
from gpuqueue.config.plugin_tables import ENVIRONMENT
from gpuqueue.domain.errors import ConfigurationError, did_you_mean

PREFIX = "GPUQUEUE_"
OF_THE_EXTENSION = ("config", "eager")
DATABASE = "gpuqueue.db"


def config_of(app: Flask) -> Config:
    """Read an app's configuration: the file that GPUQUEUE_CONFIG names, if any, overridden by the other keys.

    GPUQUEUE_DATABASE, _SYNCHRONOUS, …: as in the file. GPUQUEUE_WORKER_THREADS, _OLLAMA_URL, …: a key of a section, as in the
    environment. GPUQUEUE_QUEUES, _MODELS, …: a whole section, as a mapping. A relative file is relative to the folder of the
    app's own configuration files, a relative database to its instance folder. Raises: ConfigurationError naming the app.
    """
    try:
        given = _given(app.config)
        path = app.config.get(f"{PREFIX}CONFIG") or os.environ.get(f"{ENVIRONMENT}CONFIG")
        if path:
            path = Path(app.config.root_path) / Path(path).expanduser()
        if "database" in given:
            given["database"] = database_url(given["database"], relative_to=app.instance_path)
        elif not path and not os.environ.get(f"{ENVIRONMENT}DATABASE"):
            given["database"] = database_url(DATABASE, relative_to=app.instance_path)
        return Config.load(path or None, **given)
    except ConfigurationError as error:
        raise ConfigurationError(f"the config of Flask app {app.name!r}: {error}") from None


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = key.removeprefix(PREFIX).lower()
        if not key.startswith(PREFIX) or value is None or name in OF_THE_EXTENSION:
            continue
        section, _, rest = name.partition("_")
        if isinstance(value, Mapping):
            found[name] = {**value, **found.get(name, {})}
        elif name in ROOT_KEYS:
            found[name] = value
        elif rest in ENVIRONMENT_SECTIONS.get(section, ()):
            found.setdefault(section, {})[rest] = value
        else:
            names = list(_names())
            raise ConfigurationError(f"unknown setting {key}{did_you_mean(key, names)}. Settings: {', '.join(names)}")
    return found


def _names() -> Iterator[str]:
    """Yield the known keys; a plugin's section has its plugin's name."""
    for name in (*OF_THE_EXTENSION, *ROOT_KEYS):
        yield f"{PREFIX}{name.upper()}"
    for section, keys in ENVIRONMENT_SECTIONS.items():
        for key in keys:
            yield f"{PREFIX}{section.upper()}_{key.upper()}"
