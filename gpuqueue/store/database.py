"""Exports the operations on a queue's database as a whole, open or not: inspect, check, back up, vacuum.

They belong to the engine; there is one so far.
"""

from gpuqueue.store.sqlite.backup import BackedUp, back_up
from gpuqueue.store.sqlite.connections import LIBRARY_VERSION, MINIMUM_SQLITE
from gpuqueue.store.sqlite.engine import as_it_is
from gpuqueue.store.sqlite.integrity import check_file
from gpuqueue.store.sqlite.migrate import head, known_versions, schema_version
from gpuqueue.store.sqlite.vacuum import Vacuumed, vacuum

__all__ = [
    "LIBRARY_VERSION",
    "MINIMUM_SQLITE",
    "BackedUp",
    "Vacuumed",
    "as_it_is",
    "back_up",
    "check_file",
    "head",
    "known_versions",
    "schema_version",
    "vacuum",
]
