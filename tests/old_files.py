"""Makes the database file that an older gpuqueue would have made."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command

from gpuqueue.store.sqlite.engine import SQLite


def make_old_file(path: Path, version: str) -> None:
    """Make a file of this schema version, which nothing but its upgrade can use."""
    upgrade = command.upgrade
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "upgrade", lambda settings, _head: upgrade(settings, version))
        SQLite(path, synchronous="normal", patient=False, write_timeout_s=10.0, now_us=lambda: 0).close()
