"""Owns the queue's rows in one SQLite file; never imports devices or executors."""

from gpuqueue.store.store import Store

__all__ = ["Store"]
