"""Owns what is done over a connection that is handed: jobs in a caller's transaction, reads in Django's, and whose it is."""

from gpuqueue.store.sqlite.enqueueing import expect_own, insert_jobs
from gpuqueue.store.sqlite.reads import SQLiteReads as reads_over
from gpuqueue.store.sqlite.write_lock import holders

__all__ = ["expect_own", "holders", "insert_jobs", "reads_over"]
