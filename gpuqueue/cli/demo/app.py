"""Owns the queue object that the demo's worker process serves, made of the file in GPUQUEUE_CONFIG; runs nothing."""

from __future__ import annotations

import os

from gpuqueue.cli.demo import tasks
from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.loading import Config

# Without what else is installed: the demo shows gpuqueue itself.
gq = GPUQueue(config=Config.load(os.environ["GPUQUEUE_CONFIG"]), discover_plugins=False)
tasks.register(gq)
