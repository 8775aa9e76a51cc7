"""Copies test databases with their write-ahead log, and destroys them with it; creates none itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from django.db.backends.sqlite3 import creation

__all__ = ["DatabaseCreation"]


class DatabaseCreation(creation.DatabaseCreation):
    """Extends Django's class, which knows only one file per database."""

    def _clone_test_db(self, suffix: str, verbosity: int, keepdb: bool = False) -> Any:
        name = self.connection.settings_dict["NAME"]
        if not self.is_in_memory_db(name):
            with closing(sqlite3.connect(name)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return super()._clone_test_db(suffix, verbosity, keepdb)

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> Any:
        super()._destroy_test_db(test_database_name, verbosity)
        if test_database_name and not self.is_in_memory_db(test_database_name):
            for ending in ("-wal", "-shm"):
                Path(f"{test_database_name}{ending}").unlink(missing_ok=True)
