"""Owns what is done over a connection that is handed: jobs in a caller's transaction, reads in Django's, and whose it is.

What is done is the engine's; there is one so far.
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
    """Read what a connection sees, for as long as its owner lets it be open."""
    return SQLiteReads(connection)
