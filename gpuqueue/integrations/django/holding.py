"""Tells whether this thread has a file open, or holds its write lock, through Django; ends no transaction."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from django.db import connections

from gpuqueue.store.forks import owners
from gpuqueue.store.handed import holders


def holder_here(path: str) -> str | None:
    """Name this thread's Django connection that holds the write lock of a file, given by its real path."""
    return next(
        (
            _named(connection)
            for connection in _open_here(path)
            # A DEFERRED transaction may not have written yet.
            if connection.connection.in_transaction and connection.transaction_mode in ("IMMEDIATE", "EXCLUSIVE")
        ),
        None,
    )


def owner_here(path: str) -> str | None:
    """Name this thread's Django connection to a file, given by its real path."""
    return next(map(_named, _open_here(path)), None)


def _open_here(path: str) -> list[Any]:
    return [
        connection
        for connection in connections.all(initialized_only=True)
        if connection.connection is not None
        and connection.vendor == "sqlite"
        and real_path(str(connection.settings_dict["NAME"])) == path
    ]


def _named(connection: Any) -> str:
    return f"Django's connection {connection.alias!r}"


@lru_cache(maxsize=64)
def real_path(name: str) -> str:
    return os.path.realpath(name)


def watch() -> None:
    """Let gpuqueue's own connections check this from now on."""
    if holder_here not in holders:
        holders.append(holder_here)
    if owner_here not in owners:
        owners.append(owner_here)
