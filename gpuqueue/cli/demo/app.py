"""Creates the queue object that the demo's worker process serves, from the file in GPUQUEUE_CONFIG."""

from __future__ import annotations

import os

from gpuqueue.cli.demo import tasks
from gpuqueue.client.queue import GPUQueue
from gpuqueue.config.loading import Config

# Without other installed plugins: the demo shows gpuqueue itself.
gq = GPUQueue(config=Config.load(os.environ["GPUQUEUE_CONFIG"]), discover_plugins=False)
tasks.register(gq)
