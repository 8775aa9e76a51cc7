"""Exports the operations on a queue's database as a whole, open or not: inspect, check, back up, restore, vacuum.

They belong to the engine; there is one so far.
"""

from gpuqueue.store.sqlite.backup import BackedUp, back_up
from gpuqueue.store.sqlite.connections import LIBRARY_VERSION, MINIMUM_SQLITE
from gpuqueue.store.sqlite.engine import as_it_is
from gpuqueue.store.sqlite.integrity import check_file
from gpuqueue.store.sqlite.migrate import head, known_versions, schema_version
from gpuqueue.store.sqlite.restore import Restored, is_open_elsewhere, restore
from gpuqueue.store.sqlite.vacuum import Vacuumed, vacuum

__all__ = [
    "LIBRARY_VERSION",
    "MINIMUM_SQLITE",
    "BackedUp",
    "Restored",
    "Vacuumed",
    "as_it_is",
    "back_up",
    "check_file",
    "head",
    "is_open_elsewhere",
    "known_versions",
    "restore",
    "schema_version",
    "vacuum",
]
