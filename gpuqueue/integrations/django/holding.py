"""Tells whether this thread holds a file's write lock through Django; ends no transaction."""

from __future__ import annotations

import os
from functools import lru_cache

from django.db import connections

from gpuqueue.store.handed import holders


def holder_here(path: str) -> str | None:
    """Name this thread's Django connection that holds the write lock of a file, given by its real path."""
    for connection in connections.all(initialized_only=True):
        driver = connection.connection
        if (
            driver is not None
            and connection.vendor == "sqlite"
            and driver.in_transaction
            # A DEFERRED transaction may not have written yet.
            and connection.transaction_mode in ("IMMEDIATE", "EXCLUSIVE")
            and real_path(str(connection.settings_dict["NAME"])) == path
        ):
            return f"Django's connection {connection.alias!r}"
    return None


@lru_cache(maxsize=64)
def real_path(name: str) -> str:
    return os.path.realpath(name)


def watch() -> None:
    """Let gpuqueue's own connections check this from now on."""
    if holder_here not in holders:
        holders.append(holder_here)
