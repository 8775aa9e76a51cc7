"""Owns creating and upgrading the queues' tables when Django has migrated a database; migrates no model."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from gpuqueue.store.database import head, schema_version


def after_migrate(*, using: str, verbosity: int = 1, stdout: Any = None, **_: Any) -> None:
    """Bring the queues that live in this database to the newest schema; those with files of their own with the default one.

    It comes for each database, and after a flush too: what is new already is left alone. Raises: StoreError.
    """
    from gpuqueue.integrations.django.lookup import queues

    for gq in queues():
        if (gq.database_alias or DEFAULT_DB_ALIAS) != using:
            continue
        before = schema_version(gq.database) if gq.database.exists() else None
        if before == head():
            continue
        with closing(gq.open_store()):
            pass
        if verbosity:
            done = "created" if before is None else f"upgraded from schema {before}"
            print(f"  gpuqueue: {done} the queue in {gq.database}", file=stdout or sys.stdout)
