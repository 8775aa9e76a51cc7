"""Owns what is done over a connection that is handed: jobs inside a caller's transaction, and reads inside Django's."""

from gpuqueue.store.sqlite.enqueueing import expect_own, insert_jobs
from gpuqueue.store.sqlite.reads import SQLiteReads as reads_over

__all__ = ["expect_own", "insert_jobs", "reads_over"]
