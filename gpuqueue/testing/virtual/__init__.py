"""Plays hours of a queue and its card in seconds: the real dispatcher, policies and store on a time that jumps.

`VirtualTime` is the clock, `VirtualOllama` the card and its server, `VirtualQueue` the queue object, `VirtualWorker` the worker.
"""

from __future__ import annotations

from gpuqueue.testing.virtual.ollama import Interval, VirtualModel, VirtualOllama
from gpuqueue.testing.virtual.queue import VirtualQueue
from gpuqueue.testing.virtual.time import Signal, VirtualTime
from gpuqueue.testing.virtual.worker import VirtualWorker

__all__ = ["Interval", "Signal", "VirtualModel", "VirtualOllama", "VirtualQueue", "VirtualTime", "VirtualWorker"]
