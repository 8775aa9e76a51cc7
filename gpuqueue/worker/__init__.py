"""Runs jobs: the worker process and its parts; the client never imports it."""

from gpuqueue.worker.worker import Worker

__all__ = ["Worker"]
