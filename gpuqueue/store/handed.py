"""Exports the operations over a given connection: jobs in a caller's transaction, reads in Django's, and its checks.

They belong to the engine; there is one so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuqueue.store.sqlite.enqueueing import expect_own, insert_jobs
from gpuqueue.store.sqlite.reads import SQLiteReads
from gpuqueue.store.sqlite.write_lock import holders

if TYPE_CHECKING:
    from gpuqueue.contract.engine import Statements
    from gpuqueue.contract.reads import Reads

__all__ = ["expect_own", "holders", "insert_jobs", "reads_over"]


def reads_over(connection: Statements) -> Reads:
    """Return reads over a connection, valid while its owner keeps it open."""
    return SQLiteReads(connection)
