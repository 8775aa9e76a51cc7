"""Creates and upgrades the queues' tables after Django has migrated a database; migrates no model."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from gpuqueue.store.database import head, schema_version


def after_migrate(*, using: str, verbosity: int = 1, stdout: Any = None, **_: Any) -> None:
    """Upgrade the queues in this database to the newest schema, and with the default database those in separate files.

    Called for each database, and after a flush too; leaves a current schema alone. Raises: StoreError.
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
            done = f"created the queue in {gq.database}"
            if before is not None:
                done = f"upgraded the queue in {gq.database} from schema {before}"
            print(f"  gpuqueue: {done}", file=stdout or sys.stdout)
